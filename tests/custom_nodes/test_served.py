"""What packs and clients expect of a ComfyUI server's execution, seen from outside, with every cache."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from tests.custom_nodes.served import Client, Graph, Refused, graph, served

CACHES = {"classic": ("--cache", "classic"), "lru": ("--cache", "lru"), "none": ("--cache", "none")}


@pytest.fixture(scope="module", params=CACHES)
def cache(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def client(cache: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with served(tmp_path_factory.mktemp(cache), *CACHES[cache]) as url, Client(url, "me") as found:
        yield found


def mix(share: float, **more: Any) -> Graph:
    return graph(
        black=("TpFlat", {"value": 0.0, **more}),
        white=("TpFlat", {"value": 1.0, **more}),
        mix=("TpMixPictures", {"a": ("black", 0), "b": ("white", 0), "share": share}),
        save=("SaveImage", {"images": ("mix", 0), "filename_prefix": "x"}),
    )


def failing(client: Client, prompt: Graph) -> dict[str, Any]:
    """The error of a job that fails; it names the job."""
    found = client.run(prompt)
    assert found.error is not None
    assert found.error["prompt_id"] == found.job
    entry = client.http.get(f"/history/{found.job}").json()[found.job]
    assert entry["status"]["status_str"] == "error"
    return found.error


def test_lazy_inputs_run_when_they_are_needed(client: Client) -> None:
    found = client.run(mix(0.0, side=9))
    assert {"black", "mix", "save"} <= {*found.ran} and "white" not in found.ran
    assert client.pictures(found, "save") == [(0, 0)]


def test_what_is_kept_does_not_run_again(client: Client, cache: str) -> None:
    first = client.run(mix(0.5, side=10))
    assert client.pictures(first, "save") == [(127, 127)]
    again = client.run(mix(0.5, side=10))
    changed = client.run(mix(0.25, side=10))
    if cache == "none":
        assert {*again.ran} == {*first.ran} == {*changed.ran} and again.cached == changed.cached == []
    else:
        assert again.ran == [] and {*again.cached} == {"black", "white", "mix", "save"}
        assert {*changed.ran} == {"mix", "save"}
    assert again.outputs.keys() == {"save"}


def test_a_failure_names_its_node_and_the_next_job_runs(client: Client) -> None:
    prompt = mix(0.5, side=11)
    prompt["white"]["inputs"]["side"] = 12
    assert failing(client, prompt)["node_id"] == "mix"
    assert client.run(mix(0.5, side=11)).error is None


@pytest.mark.parametrize("later", [True, False])
def test_a_failure_in_an_async_function(client: Client, later: bool) -> None:
    prompt = graph(
        a=("TpFlat", {"value": 0.0, "side": 8}),
        sleeps=("TpSleep", {"value": ("a", 0), "seconds": 0.3}),
        fails=("TpFail", {"value": ("a", 0), "later": later}),
        one=("PreviewImage", {"images": ("sleeps", 0)}),
        two=("PreviewImage", {"images": ("fails", 0)}),
    )
    error = failing(client, prompt)
    assert (error["node_id"], error["exception_type"]) == ("fails", "ValueError")
    assert "cannot use" in error["exception_message"]


def test_an_async_function_that_gives_up_says_so(client: Client) -> None:
    prompt = graph(
        a=("TpFlat", {"value": 0.0, "side": 8}),
        late=("TpLate", {"picture": ("a", 0)}),
        save=("PreviewImage", {"images": ("late", 0)}),
    )
    error = failing(client, prompt)
    assert error["node_id"] == "late" and "timeout" in str(error).lower()


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("TpChecked", {"size": 11, "kind": "a", "other": 1}, "size 11 is too much"),
        ("TpCheckedAll", {"size": 11, "kind": "a", "other": 10}, None),
        ("TpCheckedLater", {"size": 11, "kind": "a", "other": 1}, "later"),
        ("TpCheckedTypes", {"size": ("n", 0), "kind": "a", "other": 1}, "got"),
        ("TpChecked", {"size": ("f", 0), "kind": "a", "other": 1}, None),
        ("TpChecked", {"size": "much", "kind": "a", "other": 1}, "size"),
    ],
)
def test_what_a_class_objects_to_is_answered_with_400(
    client: Client, kind: str, given: dict[str, Any], said: str | None
) -> None:
    prompt = graph(n=("TpNumber", {"value": 1}), f=("PrimitiveFloat", {"value": 1.0}), x=(kind, given))
    with pytest.raises(Refused) as caught:
        client.submit(prompt)
    assert caught.value.status == 400
    errors = caught.value.answer["node_errors"]["x"]
    assert errors["class_type"] == kind and errors["errors"]
    assert said is None or said in str(errors)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("TpChecked", {"size": 3, "kind": "a", "other": 1}),
        ("TpCheckedAll", {"size": 9, "kind": "a", "other": 1}),
        ("TpCheckedLater", {"size": 9, "kind": "a", "other": 1}),
        ("TpCheckedTypes", {"size": ("f", 0), "kind": "a", "other": 1}),
    ],
)
def test_what_a_class_accepts_runs(client: Client, kind: str, given: dict[str, Any]) -> None:
    prompt = graph(f=("PrimitiveFloat", {"value": 1.0}), x=(kind, given))
    assert "size" in client.run(prompt).outputs["x"]


def test_a_circle_is_refused_and_one_that_is_made_on_the_way_fails_its_maker(client: Client) -> None:
    prompt = graph(
        a=("TpBrighter", {"picture": ("b", 0)}),
        b=("TpBrighter", {"picture": ("a", 0)}),
        save=("PreviewImage", {"images": ("b", 0)}),
    )
    with pytest.raises(Refused) as caught:
        client.submit(prompt)
    assert caught.value.status == 400
    made = graph(
        a=("TpFlat", {"value": 0.0, "side": 8}),
        ring=("TpRing", {"picture": ("a", 0)}),
        save=("PreviewImage", {"images": ("ring", 0)}),
    )
    assert failing(client, made)["node_id"] == "ring"


def test_an_output_that_cannot_run_leaves_the_others(client: Client) -> None:
    prompt = mix(0.5, side=13) | graph(
        gone=("TpMixPictures", {"a": ("black", 0), "b": ("removed", 0), "share": 0.5}),
        bad=("SaveImage", {"images": ("gone", 0), "filename_prefix": "x"}),
    )
    found = client.run(prompt)
    assert found.error is None and {*found.outputs} == {"save"}
    whole = prompt | graph(removed=("TpFlat", {"value": 1.0, "side": 13}))
    assert {*client.run(whole).outputs} == {"save", "bad"}


def test_a_class_says_itself_whether_it_has_changed(client: Client, cache: str) -> None:
    def prompt(kind: str) -> Graph:
        return graph(a=(kind, {"value": 1}), show=("TpShow", {"value": ("a", 0)}))

    runs = [
        "a" in client.run(prompt(kind)).ran for kind in ("TpConstant", "TpConstant", "TpAlways", "TpAlways")
    ]
    assert runs == [True, cache == "none", True, True]


def test_a_class_that_asks_whether_it_has_changed_sees_no_linked_values(client: Client, cache: str) -> None:
    prompt = graph(
        a=("TpFlat", {"value": 0.5, "side": 14}),
        b=("TpChangedByValue", {"picture": ("a", 0), "value": 0.5}),
        save=("PreviewImage", {"images": ("b", 0)}),
    )
    assert client.pictures(client.run(prompt), "save") == [(63, 63)]
    again = client.run(prompt)
    assert client.pictures(again, "save") == [(63, 63)]
    assert ("b" in again.ran) == (cache == "none")


def test_inputs_that_a_class_does_not_declare(client: Client) -> None:
    prompt = graph(
        a=("TpNumber", {"value": 1}),
        b=("TpNumber", {"value": 2}),
        mean=("TpAverage", {"first": ("a", 0), "x": ("b", 0), "y": ("b", 0), "z": ("a", 0)}),
        show=("TpShow", {"value": ("mean", 0)}),
    )
    assert client.run(prompt).outputs["show"]["shown"] == [1.5]


@pytest.mark.parametrize("times", [1, 2, 4])
def test_a_loop_by_expansion(client: Client, times: int) -> None:
    prompt = graph(
        begin=("TpRepeatBegin", {"times": times, "value": ("white", 0)}),
        white=("TpFlat", {"value": 1.0, "side": 8}),
        black=("TpFlat", {"value": 0.0, "side": 8}),
        mix=("TpMixPictures", {"a": ("black", 0), "b": ("begin", 2), "share": 0.5}),
        end=("TpRepeatEnd", {"flow": ("begin", 0), "times": ("begin", 1), "value": ("mix", 0)}),
        save=("SaveImage", {"images": ("end", 0), "filename_prefix": "x"}),
    )
    found = client.run(prompt)
    assert client.pictures(found, "save") == [(255 // 2**times,) * 2]


def test_of_a_list_some_expand_and_all_keep_their_order(client: Client) -> None:
    prompt = graph(
        numbers=("TpNumbers", {"count": 4}),
        twice=("TpTwice", {"value": ("numbers", 0)}),
        show=("TpShow", {"value": ("twice", 0)}),
        plain=("TpShow", {"value": ("twice", 1)}),
    )
    found = client.run(prompt)
    assert found.outputs["show"]["shown"] == [0, 2, 4, 6]
    assert found.outputs["plain"]["shown"] == [0, 1, 2, 3]


def test_lists_of_lazy_inputs(client: Client) -> None:
    prompt = graph(
        black=("TpFlat", {"value": 0.0, "side": 8}),
        white=("TpFlat", {"value": 1.0, "side": 8}),
        numbers=("TpNumbers", {"count": 2}),
        shares=("TpAverage", {"first": ("numbers", 0)}),
        mix=("TpMixPictures", {"a": ("black", 0), "b": ("white", 0), "share": ("shares", 0)}),
        rebatch=("RebatchImages", {"images": ("mix", 0), "batch_size": 3}),
        save=("SaveImage", {"images": ("rebatch", 0), "filename_prefix": "x"}),
    )
    found = client.run(prompt)
    assert client.pictures(found, "save") == [(0, 0), (255, 255)]


def test_one_result_for_two_outputs(client: Client) -> None:
    prompt = mix(0.5, side=15) | graph(other=("SaveImage", {"images": ("mix", 0), "filename_prefix": "x"}))
    found = client.run(prompt)
    assert client.pictures(found, "save") == client.pictures(found, "other") == [(127, 127)]


def test_async_functions_wait_together_in_a_graph_and_in_an_expansion(client: Client) -> None:
    client.run(mix(0.0, side=8))
    prompt = graph(
        a=("TpNumber", {"value": 1}),
        s1=("TpSleep", {"value": ("a", 0), "seconds": 2.0}),
        s2=("TpSleep", {"value": ("a", 0), "seconds": 2.1}),
        both=("TpSleepBoth", {"seconds": 2.2}),
        o1=("TpShow", {"value": ("s1", 0)}),
        o2=("TpShow", {"value": ("s2", 0)}),
        o3=("TpShow", {"value": ("both", 0)}),
        o4=("TpShow", {"value": ("both", 1)}),
    )
    begun = time.monotonic()
    found = client.run(prompt)
    assert time.monotonic() - begun < 7
    assert {"s1", "s2", "both"} <= {*found.ran}
    assert [found.outputs[name]["shown"] for name in ("o1", "o2", "o3", "o4")] == [[1], [1], [[1]], [[2]]]


def test_what_is_blocked_of_a_list_is_left_out(client: Client) -> None:
    prompt = graph(
        numbers=("TpNumbers", {"count": 4}),
        block=("TpBlock", {"value": ("numbers", 0), "message": ""}),
        slept=("TpSleep", {"value": ("block", 0), "seconds": 0.01}),
        show=("TpShow", {"value": ("slept", 0)}),
    )
    found = client.run(prompt)
    assert "show" in found.ran and found.outputs["show"]["shown"] == [0, 2]


def test_chosen_outputs_run_with_what_they_need(client: Client) -> None:
    prompt = mix(0.0, side=16) | graph(
        first=("TpBrighter", {"picture": ("mix", 0), "by": 1.5}),
        second=("TpBrighter", {"picture": ("first", 0), "by": 2.0}),
        chosen=("SaveImage", {"images": ("second", 0), "filename_prefix": "x"}),
        other=("TpFlat", {"value": 0.3, "side": 16}),
        left=("SaveImage", {"images": ("other", 0), "filename_prefix": "x"}),
    )
    found = client.run(prompt, partial_execution_targets=["chosen"])
    done = {*found.ran, *found.cached}
    assert {"black", "mix", "first", "second", "chosen"} <= done
    assert not {"white", "other", "left", "save"} & {*found.ran}
    assert "chosen" in found.outputs and "left" not in found.outputs
    both = client.run(prompt, partial_execution_targets=["save", "left"])
    assert {"save", "left"} <= {*both.outputs} and "chosen" not in {*both.ran}
    for nothing in ([], ["black"], ["no such node"]):
        with pytest.raises(Refused) as caught:
            client.submit(prompt, partial_execution_targets=nothing)
        assert caught.value.status == 400


def test_inputs_that_an_older_graph_lacks(client: Client) -> None:
    for given, value in (({}, 127), ({"scale": 1.0}, 255), ({"mask": ("mask", 0)}, 0)):
        prompt = graph(
            white=("TpFlat", {"value": 1.0, "side": 8}),
            mask=("SolidMask", {"value": 0.0, "width": 8, "height": 8}),
            x=("TpWithDefault", {"picture": ("white", 0), **given}),
            save=("SaveImage", {"images": ("x", 0), "filename_prefix": "x"}),
        )
        assert client.pictures(client.run(prompt), "save") == [(value, value)]


@pytest.mark.parametrize("kind", ["TpSaysProgress", "TpSaysProgressLater"])
def test_progress_through_the_public_interface(client: Client, kind: str) -> None:
    prompt = graph(
        a=("TpFlat", {"value": 0.4, "side": 20 if kind == "TpSaysProgress" else 21}),
        p=(kind, {"picture": ("a", 0)}),
        save=("SaveImage", {"images": ("p", 0), "filename_prefix": "x"}),
    )
    found = client.run(prompt, extra_data={"preview_method": "auto"})
    assert "p" in found.ran and client.pictures(found, "save") == [(102, 102)]
    assert {"value": 2, "max": 2}.items() <= found.progress[-1]["p"].items()
    assert found.previews >= 1


def test_progress_goes_to_the_client_of_the_job_alone(client: Client) -> None:
    with Client(client.url, "other") as other:
        job = client.submit(mix(0.5, side=22))
        told = other.run(mix(0.5, side=23))
        assert told.progress
        assert job not in {node["prompt_id"] for state in other.heard for node in state.values()}


def test_a_cached_output_is_among_the_outputs_of_a_job_without_a_client(client: Client) -> None:
    client.run(mix(0.5, side=24))
    answer = client.http.post("/prompt", json={"prompt": mix(0.5, side=24)})
    job_id = answer.json()["prompt_id"]
    until = time.monotonic() + 30
    while (job := client.http.get(f"/api/jobs/{job_id}").json())["status"] in ("pending", "in_progress"):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert job["status"] == "completed" and "save" in job["outputs"]


def test_pages_of_the_history_and_of_the_jobs(client: Client) -> None:
    for side in range(30, 35):
        client.run(mix(0.5, side=side))
    get = client.http.get
    whole = get("/history").json()
    assert get("/history", params={"offset": 0}).json() == whole
    assert {*get("/history", params={"max_items": 2, "offset": 0}).json()}.isdisjoint(
        get("/history", params={"max_items": 2, "offset": 2}).json()
    )
    assert len(get("/history", params={"offset": 2}).json()) == len(whole) - 2
    assert len(get("/history", params={"max_items": 5, "offset": len(whole) - 1}).json()) == 1
    for beyond in (len(whole), len(whole) + 100):
        assert get("/history", params={"offset": beyond}).json() == {}
    jobs = get("/api/jobs", params={"status": "completed", "limit": 1}).json()["jobs"]
    assert {"id", "status", "create_time", "outputs_count", "preview_output"} <= jobs[0].keys()
    assert {"filename", "nodeId", "mediaType"} <= jobs[0]["preview_output"].keys()
    pages = [get("/api/jobs", params={"limit": 2, "offset": at}).json()["jobs"] for at in (0, 2)]
    assert {j["id"] for j in pages[0]}.isdisjoint(j["id"] for j in pages[1])
    for order in ("asc", "desc"):
        times = [j["create_time"] for j in get("/api/jobs", params={"sort_order": order}).json()["jobs"]]
        assert times == sorted(times, reverse=order == "desc")
    for wrong in (
        {"limit": 0},
        {"limit": -1},
        {"offset": -1},
        {"status": "no"},
        {"sort_by": "x"},
        {"limit": "x"},
    ):
        assert get("/api/jobs", params=wrong).status_code in (200, 400)
    assert get("/api/jobs/no-such-job").status_code == 404


def test_choices_that_a_class_lists_by_itself_are_those_of_now(client: Client) -> None:
    """As in ComfyUI, which asks INPUT_TYPES whenever it shows or checks a class."""

    def upload() -> str:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (time.monotonic_ns() % 256, 0, 0)).save(buffer, "PNG")
        name = f"listed-{time.monotonic_ns()}.png"
        answer = client.http.post("/upload/image", files={"image": (name, buffer.getvalue())})
        return answer.json()["name"]

    for shown_before in (True, False):
        name = upload()
        if shown_before:
            info = client.http.get("/object_info/TpListed").json()["TpListed"]
            assert name in info["input"]["required"]["file"][0]
        assert client.run(graph(x=("TpListed", {"file": name}))).outputs["x"]["shown"] == [name]
    with pytest.raises(Refused) as caught:
        client.submit(graph(x=("TpListed", {"file": "missing.png"})))
    assert "value_not_in_list" in str(caught.value.answer)
