"""API graphs for the cases of the parity figures."""

from __future__ import annotations

from typing import Any

Api = dict[str, Any]


def tutorial_graph(case: Api, checkpoint: str, vae: str) -> Api:
    """The tutorial's first workflow (SD1.5, or SDXL) with the settings of a case.

    Node ids: "sample" is the KSampler, "save" the SaveImage, "pixels" the input picture of a case."""
    graph: Api = {
        "checkpoint": _node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "vae": _node("VAELoader", vae_name=vae),
    }
    model, clip = ["checkpoint", 0], ["checkpoint", 1]
    for index, (name, strength_model, strength_clip) in enumerate(case["loras"]):
        key = f"lora{index}"
        graph[key] = _node(
            "LoraLoader",
            model=model,
            clip=clip,
            lora_name=name,
            strength_model=strength_model,
            strength_clip=strength_clip,
        )
        model, clip = [key, 0], [key, 1]
    if case["clip_skip"]:
        graph["skip"] = _node("CLIPSetLastLayer", clip=clip, stop_at_clip_layer=-case["clip_skip"])
        clip = ["skip", 0]
    vae_link = ["vae", 0] if case["vae"] == "external" else ["checkpoint", 2]
    if case["vae"] != "external":
        del graph["vae"]
    sizes = case.get("sdxl_sizes")
    for key in ("positive", "negative"):
        graph[key] = _encode(clip, case[key], sizes)
    if case.get("init"):
        graph["pixels"] = _node("LoadImage", image="init.png")
        graph["latent"] = _node("VAEEncode", pixels=["pixels", 0], vae=vae_link)
    else:
        graph["latent"] = _node(
            "EmptyLatentImage", width=case["width"], height=case["height"], batch_size=case["batch"]
        )
    graph["sample"] = _node(
        "KSampler",
        model=model, positive=["positive", 0], negative=["negative", 0], latent_image=["latent", 0],
        seed=case["seed"], steps=case["steps"], cfg=case["cfg"], sampler_name=case["sampler"],
        scheduler=case["scheduler"], denoise=case["denoise"],
    )  # fmt: skip
    graph["decode"] = _node("VAEDecode", samples=["sample", 0], vae=vae_link)
    graph["save"] = _node("SaveImage", images=["decode", 0], filename_prefix="parity")
    graph["latents"] = _node("SaveLatent", samples=["sample", 0], filename_prefix="parity")
    return graph


def flux_graph(case: Api, unet: str, clips: list[str], vae: str) -> Api:
    """The tutorial's second workflow (Flux.1) with the settings of a case."""
    graph: Api = {
        "unet": _node("UNETLoader", unet_name=unet, weight_dtype="default"),
        "clip": _node(
            "DualCLIPLoader", clip_name1=clips[0], clip_name2=clips[1], type="flux", device="default"
        ),
        "vae": _node("VAELoader", vae_name=vae),
        "latent": _node(
            "EmptySD3LatentImage", width=case["width"], height=case["height"], batch_size=case["batch"]
        ),
    }
    model = ["unet", 0]
    for index, (name, strength) in enumerate(case["loras"]):
        graph[f"lora{index}"] = _node(
            "LoraLoaderModelOnly", model=model, lora_name=name, strength_model=strength
        )
        model = [f"lora{index}", 0]
    graph["positive"] = _encode(["clip", 0], case["positive"], None)
    graph["negative"] = _encode(["clip", 0], case["negative"], None)
    graph["guidance"] = _node("FluxGuidance", conditioning=["positive", 0], guidance=case["guidance"])
    graph["sample"] = _node(
        "KSampler",
        model=model, positive=["guidance", 0], negative=["negative", 0], latent_image=["latent", 0],
        seed=case["seed"], steps=case["steps"], cfg=case["cfg"], sampler_name=case["sampler"],
        scheduler=case["scheduler"], denoise=1.0,
    )  # fmt: skip
    graph["decode"] = _node("VAEDecode", samples=["sample", 0], vae=["vae", 0])
    graph["save"] = _node("SaveImage", images=["decode", 0], filename_prefix="parity")
    graph["latents"] = _node("SaveLatent", samples=["sample", 0], filename_prefix="parity")
    return graph


def _node(class_type: str, **inputs: Any) -> Api:
    return {"class_type": class_type, "inputs": inputs}


def _encode(clip: list[Any], text: str, sizes: list[int] | None) -> Api:
    if sizes is None:
        return _node("CLIPTextEncode", clip=clip, text=text)
    names = ("width", "height", "crop_w", "crop_h", "target_width", "target_height")
    return _node(
        "CLIPTextEncodeSDXL", clip=clip, text_g=text, text_l=text, **dict(zip(names, sizes, strict=True))
    )
