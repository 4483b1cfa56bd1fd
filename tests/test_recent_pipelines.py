"""The pipelines of 2025 and 2026, from folder to folder: prompts, latents, samples, a cut, its recovery."""

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from diffusers import DiffusionPipeline, QwenImageImg2ImgPipeline, WanVideoToVideoPipeline
from PIL import Image

import folders
import secateur
from pipelines import image_folder
from recent_pipelines import RECENT, flux_2_klein, qwen_image, wan, wan_2_2
from sampled import generate_images
from secateur import CompensationConfig, CutConfig, EvaluationConfig, RecoveryConfig, ScoringConfig
from secateur.base.errors import DataError, ModelError
from secateur.base.files import read_json, write_json
from secateur.data import load_data
from secateur.data.autoencoder import latent_space, open_autoencoder
from secateur.data.text import open_text_encoder
from secateur.io.pipeline import load
from secateur.models.network import input_shape
from secateur.process.sampling import initial_noise
from secateur.results import Evaluation, read_result
from secateur.runs.sampling import default_guidance
from secateur.runs.subject import open_subject

PROMPTS = ["a cat", "dog"]
MARKS = {"z-image": pytest.mark.slow}  # of lists, the one that is called least like others


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path_factory.getbasetemp() / "structures-of-pipelines"))


UNGUIDED = {"guidance_scale": 1.0}
CALLED = {  # how each pipeline is asked for no guidance
    "flux2-klein": UNGUIDED,
    "z-image": {"guidance_scale": 0.0},
    "chroma": UNGUIDED,
    "lumina2": UNGUIDED,
    "aura-flow": UNGUIDED,
    "wan": {**UNGUIDED, "num_frames": 5},
    "wan2.2": {**UNGUIDED, "num_frames": 5},
}


def clip_folder(folder, count=3, frames=7, size=16, captions=True):
    """Folders of random frames."""
    generator = np.random.default_rng(0)
    for clip in range(count):
        (folder / f"clip{clip}").mkdir(parents=True)
        for frame in range(frames):
            pixels = generator.integers(0, 255, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"clip{clip}" / f"{frame:03d}.png")
    if captions:
        lines = [f'{{"file_name": "clip{clip}", "text": "a cat"}}' for clip in range(count)]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def as_latents(name, pipeline, noise):
    """The noise in the shape that the pipeline takes for latents."""
    return type(pipeline)._pack_latents(noise, *noise.shape) if name in ("qwen-image", "chroma") else noise


@pytest.mark.slow
@pytest.mark.parametrize(("name", "component"), [*((name, None) for name in RECENT), ("wan2.2", "transformer_2")])
def test_samples_are_those_of_the_pipeline_with_its_own_scheduler(name, component, tmp_path, monkeypatch):
    found = check_samples(name, component, tmp_path, monkeypatch, CALLED.get(name, {}), guidance_scale=1.0)
    assert found.std() > 0.1
    assert (found[0] - found[1]).abs().max() > 0.05


GUIDED = {  # what each pipeline is told, where its own guidance is meant; the defaults of all but Qwen-Image are on
    "qwen-image": {"true_cfg_scale": 4.0, "negative_prompt": ["", ""]},
    "wan": {"num_frames": 5},
    "wan2.2": {"num_frames": 5},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECENT)
def test_guided_samples_are_those_of_the_pipeline(name, tmp_path, monkeypatch):
    scale = 4.0 if name == "qwen-image" else None
    check_samples(name, None, tmp_path, monkeypatch, GUIDED.get(name, {}), guidance_scale=scale)


def check_samples(name, component, folder, monkeypatch, called, *, guidance_scale):
    """Compare samples with those of a pipeline that is `called` so; None is the pipeline's own guidance."""
    monkeypatch.setattr("secateur.data.text.KEPT", torch.float32)
    pipeline = RECENT[name](folder)
    loaded = load(folder, component=component)
    shape = input_shape(loaded.model)
    *_, height, width = latent_space(loaded.vae).image_shape(shape)
    encoder = open_text_encoder(folder, (height, width))
    found = generate_images(
        loaded.model,
        loaded.process,
        [3, 4],
        shape,
        encoder(PROMPTS),
        num_inference_steps=4,
        guidance_scale=default_guidance(open_subject(folder)) if guidance_scale is None else guidance_scale,
        null=encoder.null(),
        scheduler="UniPCMultistepScheduler" if name.startswith("wan") else None,
        decode=open_autoencoder(loaded.vae).decode,
    )
    noise = as_latents(name, pipeline, initial_noise([3, 4], shape))
    size = {"height": height, "width": width, "num_inference_steps": 4, "output_type": "pt"}
    output = pipeline(prompt=list(PROMPTS), latents=noise, **size, **called)
    expected = output.frames.transpose(1, 2) if name.startswith("wan") else output.images
    torch.testing.assert_close(found, 2 * expected - 1, rtol=0, atol=2e-4)
    return found


def encoded_by_pipeline(name, pipeline, x, noise):
    """The latents of images or clips as the pipelines of diffusers compute them."""
    if name == "flux2-klein":  # takes the mean
        return pipeline._encode_vae_image(x, None)
    if name == "qwen-image":
        seeded = torch.Generator().manual_seed(5)
        noise.copy_(torch.randn(noise.shape, generator=torch.Generator().manual_seed(5)))
        return QwenImageImg2ImgPipeline(**pipeline.components)._encode_vae_image(x.unsqueeze(2), seeded).squeeze(2)
    parts = {key: part for key, part in pipeline.components.items() if key != "transformer_2"}
    editing = WanVideoToVideoPipeline(**parts)  # takes the mean, and adds noise: none here
    editing.scheduler.add_noise = lambda latents, noise, timestep: latents
    return editing.prepare_latents(x, len(x), 2, 16, 16, torch.float32, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux2-klein", "qwen-image", "wan"])
def test_latents_are_normalized_as_the_pipelines_own_encoding_is(name, tmp_path):
    pipeline = RECENT[name](tmp_path)
    loaded = load(tmp_path)
    shape = input_shape(loaded.model)
    x = torch.rand(2, *latent_space(loaded.vae).image_shape(shape)) * 2 - 1
    noise = torch.zeros(2, *shape)
    with torch.no_grad():
        expected = encoded_by_pipeline(name, pipeline, x, noise)
    autoencoder = open_autoencoder(loaded.vae)
    found = autoencoder.encode(x, noise)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert autoencoder.decode(found).shape == x.shape


OPTIONS = {
    "target": "macs=85%",
    "criterion": "taylor",
    "scoring": ScoringConfig(num_timesteps=2, num_images=2),
    "compensation": CompensationConfig(num_tuples=4, batch_size=2, rounds=1),
    "recovery": RecoveryConfig(steps=1, batch_size=2, log_every=1),
    "evaluation": EvaluationConfig(metrics=("loss", "consistency"), num_images=2, num_inference_steps=2),
    "cut": CutConfig(round_to=1),
    "device": "cpu",
}
RUNS = [(name, "transformer") for name in RECENT] + [("wan2.2", "transformer_2")]


@pytest.mark.parametrize(
    ("name", "component"), [pytest.param(*each, marks=MARKS.get(each[0], pytest.mark.torture)) for each in RUNS]
)
def test_compress_returns_a_pipeline_ready_to_call(name, component, tmp_path):
    RECENT[name](tmp_path / "pipeline")
    loaded = load(tmp_path / "pipeline", component=component)
    *_, height, width = latent_space(loaded.vae).image_shape(input_shape(loaded.model))
    if name.startswith("wan"):
        data = clip_folder(tmp_path / "clips")
    else:
        data = image_folder(tmp_path / "images", count=3, size=height, captions=True)
    chosen = {**OPTIONS, "component": component}
    run = folders.compress(str(tmp_path / "pipeline"), data=str(data), out=tmp_path / "run", **chosen)
    found = read_result(Evaluation, run / "evaluation" / "evaluation.json")
    assert found.macs.ratio < 0.86
    assert found["ssim"].value < 1
    pipeline = secateur.load_pipeline(run / "pipeline")
    size = {"height": height, "width": width, "num_inference_steps": 2, "output_type": "np"}
    if name.startswith("wan"):
        frames = pipeline(prompt="a cat", num_frames=5, **size).frames
        assert frames.shape == (1, 5, height, width, 3)
    else:
        assert pipeline(prompt="a cat", **size).images.shape == (1, height, width, 3)
    pruned = getattr(pipeline, component)
    assert type(pruned).__name__ == f"Pruned{type(loaded.model).__name__}"
    plain = getattr(DiffusionPipeline.from_pretrained(run / "pipeline"), component)  # wherever secateur is installed
    assert all(map(torch.equal, plain.state_dict().values(), pruned.state_dict().values()))
    drawn = secateur.sample(
        str(run / "pipeline"), component=component, prompt=PROMPTS, num_images=2, num_inference_steps=2, device="cpu"
    )
    assert drawn.shape == (2, *latent_space(loaded.vae).image_shape(input_shape(loaded.model)))


@pytest.mark.slow
def test_a_model_of_few_steps_sees_the_times_that_it_is_sampled_at(tmp_path):
    flux_2_klein(tmp_path / "klein")
    process = load(tmp_path / "klein").process  # whose pipeline says that it is distilled
    solver = process.scheduler()
    solver.set_timesteps(4)
    u = torch.linspace(0, 0.999, 40)
    assert process.timesteps(u).unique().tolist() == sorted(solver.timesteps.tolist())
    assert process.timesteps(torch.tensor([0.1, 0.9]))[0] < process.timesteps(torch.tensor([0.1, 0.9]))[1]
    three = load(tmp_path / "klein", process="auto:3").process
    assert len(three.timesteps(u).unique()) == 3
    qwen_image(tmp_path / "qwen")
    assert len(load(tmp_path / "qwen").process.timesteps(u).unique()) == 40


@pytest.mark.slow
def test_each_of_two_experts_sees_its_own_noise_levels(tmp_path):
    wan_2_2(tmp_path)
    u = torch.linspace(0, 0.999, 50)
    low, high = (load(tmp_path, component=name).process for name in ("transformer_2", "transformer"))
    assert low.timesteps(u).max() < 875 <= high.timesteps(u).min()
    assert high.timesteps(u).max() > 990
    assert low != high
    assert low.expert.other() is low.expert.other()


@pytest.mark.slow
def test_what_cannot_be_done_is_one_line(tmp_path):
    qwen_image(tmp_path / "qwen")
    index = tmp_path / "qwen" / "model_index.json"
    for kind in ("QwenImageEditPipeline", "QwenImageInpaintPipeline", "QwenImageControlNetPipeline"):
        write_json(index, read_json(index) | {"_class_name": kind})
        with pytest.raises(ModelError, match=f"prompts of a {kind} are not supported"):
            secateur.sample(str(tmp_path / "qwen"), prompt=("a cat",), num_images=1, device="cpu")
    wan(tmp_path / "wan")
    short = clip_folder(tmp_path / "clips", frames=4)
    with pytest.raises(DataError, match="clip0 has 4 frames, the model takes 5"):
        secateur.rank(str(tmp_path / "wan"), data=str(short), criterion="taylor", device="cpu")


def test_the_frames_in_the_middle_of_a_clip_are_read(tmp_path):
    folder = clip_folder(tmp_path / "clips", count=2, frames=7, size=8)
    dataset = load_data(folder, (3, 5, 8, 8))
    sample = dataset.batch([1]).sample
    assert sample.shape == (1, 3, 5, 8, 8)
    third = torch.from_numpy(np.array(Image.open(folder / "clip1" / "003.png"))).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(sample[0, :, 2], third)
    for frame in range(7):  # without zeros in front, 8.png to 14.png
        (folder / "clip1" / f"{frame:03d}.png").rename(folder / "clip1" / f"{frame + 8}.png")
    assert torch.equal(load_data(folder, (3, 5, 8, 8)).batch([1]).sample, sample)
    assert dataset.captions == ("a cat", "a cat")
    others = [load_data(folder, shape) for shape in ((3, 5, 8, 8), (3, 5, 4, 4), (3, 3, 8, 8))]
    assert len({other.fingerprint for other in others}) == 3
    with pytest.raises(DataError, match="holds no clips"):
        load_data(image_folder(tmp_path / "images", count=2), (3, 5, 8, 8))


def test_a_video_file_is_a_clip(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with monkeypatch.context() as without:
        without.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(DataError, match=r"holds video files, which need av: pip install 'secateur\[video\]'"):
            load_data(tmp_path, (3, 5, 16, 16))
    av = pytest.importorskip("av")
    with pytest.raises(DataError, match=r"a\.mp4 cannot be decoded"):
        load_data(tmp_path, (3, 5, 16, 16)).batch([0])
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 16
        for level in range(0, 210, 30):
            picture = np.full((16, 16, 3), level, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    sample = load_data(tmp_path, (3, 5, 16, 16)).batch([0]).sample
    assert sample.shape == (1, 3, 5, 16, 16)
    levels = (sample.mean((0, 1, 3, 4)) + 1) * 127.5
    torch.testing.assert_close(levels, torch.arange(30.0, 180.0, 30.0), rtol=0, atol=6)
