"""What somebody new meets: no model, files dropped on the page, a server that has a token or has gone."""

from __future__ import annotations

import base64
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.lora.small_files import write_small_lora
from tests.server.browser import NewPage, needs_browser
from tests.server.editor import serve

from loraloom.demo.files import WORKFLOW

pytestmark = needs_browser
TOKEN = "a-secret-of-ours"
DROP = """files => {
  const data = new DataTransfer();
  for (const [text, name] of files)
    data.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name));
  document.querySelector("main").dispatchEvent(
    new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer: data}));
}"""
Server = tuple[subprocess.Popen[str], str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("first")


@pytest.fixture(scope="module")
def servers(folder: Path) -> Iterator[list[Server]]:
    """One server with a token in an empty folder; a test may put another in its place."""
    found = [serve(folder, "--no-frontend", "--token", TOKEN)]
    yield found
    for process, _ in found:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def url(servers: list[Server]) -> str:
    return servers[0][1]


def drop(page: Any, *files: tuple[str, bytes]) -> None:
    page.evaluate(DROP, [[base64.b64encode(content).decode(), name] for name, content in files])


def enter(page: Any, url: str) -> None:
    """The page, past the question for the token."""
    page.goto(f"{url}/loraloom?token={TOKEN}")
    page.get_by_label("Prompt", exact=True).wait_for()


def notice(page: Any, text: str | re.Pattern[str]) -> Any:
    found = page.locator(".notice", has_text=text).first
    found.wait_for()
    return found


def test_a_token_is_asked_for_in_words(new_page: NewPage, url: str) -> None:
    watched = new_page("phone", "dark")
    page = watched.page
    assert page.goto(url).status == 401
    page.get_by_text("asks for its token").wait_for()
    watched.check("token-phone-dark")
    page.get_by_label("Token").fill("another one")
    page.keyboard.press("Enter")
    page.get_by_text("That is not this server's token.").wait_for()
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Open").click()
    page.get_by_label("Prompt", exact=True).wait_for()
    assert TOKEN not in page.url
    other = httpx.get(f"{url}/v1/queue")
    assert (other.status_code, other.headers["content-type"]) == (401, "application/json")


def test_without_a_model_the_small_one_is_a_click_away(new_page: NewPage, url: str, folder: Path) -> None:
    watched = new_page("phone")
    page = watched.page
    enter(page, url)
    said = page.get_by_role("region", name="No base model")
    assert str(folder / "models" / "checkpoints") in said.inner_text()
    assert page.get_by_label("Base model", exact=True).locator("option:checked").inner_text() == "None yet"
    assert page.get_by_role("button", name=re.compile("^Draw")).is_disabled()
    watched.check("no-model-phone-light")
    page.get_by_role("button", name="Use the small model").click()
    notice(page, "The small model is there")
    assert said.count() == 0
    assert (
        page.get_by_label("Base model", exact=True).input_value() == "checkpoints/loraloom-demo.safetensors"
    )
    assert page.get_by_label("Width", exact=True).input_value() == "192"
    assert page.get_by_role("button", name=re.compile("^Draw")).is_enabled()
    page.get_by_role("button", name="Add LoRA").click()
    page.locator(".pick", has_text="pixel_art").wait_for()
    watched.check("small-model-phone-light")


def test_a_dropped_lora_is_in_the_drawing(new_page: NewPage, url: str, folder: Path, tmp_path: Path) -> None:
    page = new_page().page
    enter(page, url)
    page.goto(f"{url}/loraloom#/gallery")
    page.get_by_role("heading", name="Gallery").wait_for()
    drop(page, ("my style.safetensors", write_small_lora(tmp_path / "a.safetensors").read_bytes()))
    page.locator(".lora-row", has_text="my style").wait_for()
    assert (folder / "models" / "loras" / "my style.safetensors").is_file()
    page.goto(f"{url}/loraloom#/library")
    page.get_by_role("heading", name="LoRA library").wait_for()
    drop(page, ("second.safetensors", write_small_lora(tmp_path / "b.safetensors", fill=3).read_bytes()))
    page.locator(".lora-tile", has_text="second").wait_for()
    assert page.url.endswith("#/library")


def test_a_long_name_fits_a_phone(new_page: NewPage, url: str, tmp_path: Path) -> None:
    watched = new_page("phone")
    page = watched.page
    enter(page, url)
    name = "a style with a name that says in many words what it is and for whom, version 2"
    drop(page, (f"{name}.safetensors", write_small_lora(tmp_path / "a.safetensors", fill=9).read_bytes()))
    page.locator(".lora-row", has_text="a style with").wait_for()
    page.get_by_role("button", name=f"Remove {name}").scroll_into_view_if_needed()
    watched.check("long-name-phone-light")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("weights.pt", b"\x80\x04}.", "loraloom models convert"),
        ("empty.safetensors", b"", "empty.safetensors"),
        ("notes.txt", b"just some words", "holds no workflow"),
        ("empty.json", b"", "is empty"),
        ("large.png", bytes(60_000_000), "neither text nor"),
    ],
)
def test_a_wrong_file_is_refused_in_words(
    new_page: NewPage, url: str, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    page = new_page().page
    enter(page, url)
    (tmp_path / name).write_bytes(content)
    page.get_by_label("Workflow or LoRA file").set_input_files(tmp_path / name)
    page.locator(".notice.bad", has_text=said).wait_for()
    assert page.get_by_label("Prompt", exact=True).is_visible()


def test_a_missing_file_is_named_until_another_is_chosen(new_page: NewPage, url: str) -> None:
    watched = new_page()
    page = watched.page
    enter(page, url)
    httpx.post(f"{url}/v1/draw/demo", headers={"Authorization": f"Bearer {TOKEN}"})
    text = WORKFLOW.read_text().replace("loraloom-demo.safetensors", "dreams_8.safetensors")
    drop(page, ("dreams.json", text.encode()))
    page.get_by_text("One thing to set right first").wait_for()
    lost = page.get_by_text("“dreams_8.safetensors” is not in the folder checkpoints.")
    lost.wait_for()
    watched.check("missing-wide-light")
    page.get_by_role("button", name="Run workflow").click()
    notice(page, "“dreams_8.safetensors” is not in its folder")
    page.get_by_label("ckpt name").select_option("loraloom-demo.safetensors")
    page.get_by_text("One thing to set right first").wait_for(state="detached")


def test_a_server_that_has_gone_and_comes_back(
    new_page: NewPage, url: str, folder: Path, servers: list[Server]
) -> None:
    page = new_page().page
    enter(page, url)
    page.get_by_label("Prompt", exact=True).fill("a rose")
    process, _ = servers[0]
    process.terminate()
    process.wait(20)
    page.get_by_role("alert").filter(has_text="start loraloom serve again").wait_for()
    page.get_by_role("button", name=re.compile("^Draw")).click()
    notice(page, "The server does not answer")
    port = url.rpartition(":")[2]
    servers[0] = serve(folder, "--no-frontend", "--token", TOKEN, "--port", port)
    page.get_by_role("alert").filter(has_text="start loraloom serve again").wait_for(state="detached")
    assert page.get_by_label("Prompt", exact=True).input_value() == "a rose"
