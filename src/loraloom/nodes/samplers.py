"""Nodes that choose a sampler and its knobs."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from loraloom.engine.node import Choice, Number, Options, Socket, node
from loraloom.nodes.sockets import Model
from loraloom.resampling import resize
from loraloom.sampling.samplers.euler import euler_pp, lcm_upscale
from loraloom.sampling.samplers.registry import Method, method, sampler_names
from loraloom.sampling.samplers.sa_solver import TauBetween
from loraloom.sampling.samplers.stochastic import PowerNoiseScale

CATEGORY = "sampling/custom_sampling/samplers"
EXTRA = "comfy_extras.nodes_custom_sampler"
ADVANCED = "comfy_extras.nodes_advanced_samplers"

Sampler = Annotated[Method, Socket("SAMPLER")]
Knob = Annotated[float, Number(min=0.0, max=100.0, step=0.01, round=False)]
NoiseDevice = Annotated[str, Choice(("gpu", "cpu"))]
Percent = Annotated[float, Number(min=0.0, max=1.0, step=0.001)]


@node("KSamplerSelect", category=CATEGORY, display_name="KSamplerSelect", python_module=EXTRA)
def choose_sampler(sampler_name: Annotated[str, Choice(sampler_names)]) -> Sampler:
    """Choose a sampler by its name."""
    return method(sampler_name)


@node("SamplerEulerAncestral", category=CATEGORY, display_name="SamplerEulerAncestral", python_module=EXTRA)
def euler_ancestral(eta: Knob = 1.0, s_noise: Knob = 1.0) -> Sampler:
    """Euler steps with fresh noise: eta is how much, s_noise how strong."""
    return method("euler_ancestral", eta=eta, s_noise=s_noise)


@node(
    "SamplerEulerAncestralCFGPP",
    category=CATEGORY,
    display_name="SamplerEulerAncestralCFG++",
    python_module=EXTRA,
)
def euler_ancestral_cfg_pp(
    eta: Annotated[float, Number(min=0.0, max=1.0, step=0.01, round=False)] = 1.0,
    s_noise: Annotated[float, Number(min=0.0, max=10.0, step=0.01, round=False)] = 1.0,
) -> Sampler:
    """Euler steps with fresh noise and CFG++: use a cfg around 1."""
    return method("euler_ancestral_cfg_pp", eta=eta, s_noise=s_noise)


@node(
    "SamplerEulerCFGpp",
    category="_for_testing",
    display_name="SamplerEulerCFG++",
    experimental=True,
    v3=True,
    python_module=ADVANCED,
)
def euler_cfg_pp(version: Annotated[str, Choice(("regular", "alternative"))]) -> Sampler:
    """Euler steps with CFG++, in one of two forms: use a cfg around 1."""
    if version == "alternative":
        return Method("euler_pp", euler_pp, needs_uncond=True)
    return method("euler_cfg_pp")


@node("SamplerLCMUpscale", category=CATEGORY, v3=True, python_module=ADVANCED)
def enlarging_lcm(
    *,
    scale_ratio: Annotated[float, Number(min=0.1, max=20.0, step=0.01)] = 1.0,
    scale_steps: Annotated[int, Number(min=-1, max=1000, step=1)] = -1,
    upscale_method: Annotated[str, Choice(("bislerp", "nearest-exact", "bilinear", "area", "bicubic"))],
) -> Sampler:
    """Consistency sampling that enlarges the latent over its first steps; -1: over half of them."""
    return Method("lcm_upscale", lcm_upscale).with_knobs(
        ratio=scale_ratio,
        resize=partial(resize, method=upscale_method),
        enlargements=None if scale_steps < 0 else scale_steps,
    )


@node("SamplerLMS", category=CATEGORY, display_name="SamplerLMS", python_module=EXTRA)
def lms(order: Annotated[int, Number(min=1, max=100)] = 4) -> Sampler:
    """Linear multistep sampling over so many steps."""
    return method("lms", order=order)


@node("SamplerDPMPP_3M_SDE", category=CATEGORY, display_name="SamplerDPMPP_3M_SDE", python_module=EXTRA)
def dpmpp_3m_sde(*, eta: Knob = 1.0, s_noise: Knob = 1.0, noise_device: NoiseDevice) -> Sampler:
    """DPM-Solver++ of third order with noise."""
    return method(_on(noise_device, "dpmpp_3m_sde"), eta=eta, s_noise=s_noise)


@node("SamplerDPMPP_2M_SDE", category=CATEGORY, display_name="SamplerDPMPP_2M_SDE", python_module=EXTRA)
def dpmpp_2m_sde(
    *,
    solver_type: Annotated[str, Choice(("midpoint", "heun"))],
    eta: Knob = 1.0,
    s_noise: Knob = 1.0,
    noise_device: NoiseDevice,
) -> Sampler:
    """DPM-Solver++ of second order with noise."""
    return method(_on(noise_device, "dpmpp_2m_sde"), eta=eta, s_noise=s_noise, solver_type=solver_type)


@node("SamplerDPMPP_SDE", category=CATEGORY, display_name="SamplerDPMPP_SDE", python_module=EXTRA)
def dpmpp_sde(*, eta: Knob = 1.0, s_noise: Knob = 1.0, r: Knob = 0.5, noise_device: NoiseDevice) -> Sampler:
    """DPM-Solver++ with noise and a second evaluation at share r of each step."""
    return method(_on(noise_device, "dpmpp_sde"), eta=eta, s_noise=s_noise, r=r)


@node(
    "SamplerDPMPP_2S_Ancestral",
    category=CATEGORY,
    display_name="SamplerDPMPP_2S_Ancestral",
    python_module=EXTRA,
)
def dpmpp_2s_ancestral(eta: Knob = 1.0, s_noise: Knob = 1.0) -> Sampler:
    """DPM-Solver++ with a second evaluation in each step and fresh noise after it."""
    return method("dpmpp_2s_ancestral", eta=eta, s_noise=s_noise)


@node("SamplerDPMAdaptative", category=CATEGORY, display_name="SamplerDPMAdaptative", python_module=EXTRA)
def dpm_adaptive(
    *,
    order: Annotated[int, Number(min=2, max=3)] = 3,
    rtol: Knob = 0.05,
    atol: Knob = 0.0078,
    h_init: Knob = 0.05,
    pcoeff: Knob = 0.0,
    icoeff: Knob = 1.0,
    dcoeff: Knob = 0.0,
    accept_safety: Knob = 0.81,
    eta: Knob = 0.0,
    s_noise: Knob = 1.0,
) -> Sampler:
    """DPM-Solver that chooses its own steps: the number of steps of the schedule does not matter."""
    return method(
        "dpm_adaptive",
        order=order,
        rtol=rtol,
        atol=atol,
        h_init=h_init,
        pcoeff=pcoeff,
        icoeff=icoeff,
        dcoeff=dcoeff,
        accept_safety=accept_safety,
        eta=eta,
        s_noise=s_noise,
    )


@node("SamplerER_SDE", category=CATEGORY, display_name="SamplerER_SDE", python_module=EXTRA)
def er_sde(
    *,
    solver_type: Annotated[str, Choice(("ER-SDE", "Reverse-time SDE", "ODE")), Options({"options": []})],
    max_stage: Annotated[int, Number(min=1, max=3)] = 3,
    eta: Knob = 1.0,
    s_noise: Knob = 1.0,
) -> Sampler:
    """Extended reverse-time SDE sampling; eta counts for the reverse-time SDE only."""
    if solver_type == "ER-SDE":
        return method("er_sde", max_stage=max_stage, s_noise=s_noise)
    strength = 0.0 if solver_type == "ODE" else eta
    return method(
        "er_sde",
        max_stage=max_stage,
        s_noise=s_noise if strength > 0 else 0.0,
        noise_scale=PowerNoiseScale(strength),
    )


@node("SamplerSASolver", category=CATEGORY, display_name="SamplerSASolver", python_module=EXTRA)
def sa_solver(
    *,
    model: Model,
    eta: Annotated[float, Number(min=0.0, max=10.0, step=0.01, round=False)] = 1.0,
    sde_start_percent: Percent = 0.2,
    sde_end_percent: Percent = 0.8,
    s_noise: Knob = 1.0,
    predictor_order: Annotated[int, Number(min=1, max=6)] = 3,
    corrector_order: Annotated[int, Number(min=0, max=6)] = 4,
    use_pece: bool,
    simple_order_2: bool,
) -> Sampler:
    """Stochastic Adams sampling, with noise between two points of the sampling range."""
    return method(
        "sa_solver",
        tau=TauBetween.of_range(model.current_parametrisation(), sde_start_percent, sde_end_percent, eta),
        s_noise=s_noise,
        predictor_order=predictor_order,
        corrector_order=corrector_order,
        use_pece=use_pece,
        simple_order_2=simple_order_2,
    )


def _on(noise_device: str, name: str) -> str:
    return name if noise_device == "cpu" else f"{name}_gpu"
