"""LoRA adapters: labels are those of peft on the same folders, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from checkpoints import tiny_classifier, tiny_ctc, tiny_whisper
from hearing import RATE, sound
from runs import Job, earmark
from test_families import ASR, Family
from test_missing_files import refusal

from audio_ops.inference.checkpoint import find_checkpoint
from audio_ops.label import Label
from audio_ops.tasks import Clip, load_task
from jobs.models import find_model, on_this_node

SOUNDS = [sound(1.0, 200), sound(2.4, 900)]
CLASSIFY = "audio-classification"


class Adapted(NamedTuple):
    make: Callable[[Path], Path]
    task: str
    auto: str  # transformers' class
    targets: list[str]


FAMILIES = {
    "whisper": Adapted(
        tiny_whisper, ASR, "AutoModelForSpeechSeq2Seq", ["q_proj", "v_proj", "fc1", "out_proj"]
    ),
    "ctc": Adapted(
        lambda folder: tiny_ctc(folder, "wav2vec2", seed=2),
        ASR,
        "AutoModelForCTC",
        ["q_proj", "v_proj", "output_dense"],
    ),
    "classifier": Adapted(
        lambda folder: tiny_classifier(folder, "hubert"),
        CLASSIFY,
        "AutoModelForAudioClassification",
        ["q_proj", "v_proj"],
    ),
}


def model_in(folder: Path, family: Adapted) -> Any:
    import transformers

    return getattr(transformers, family.auto).from_pretrained(folder, dtype=torch.float32)


def lora(base: Path, folder: Path, family: Adapted, **settings: Any) -> Path:
    """A random LoRA of the model in `base`, as peft saves it in `folder`."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    model: Any = get_peft_model(
        model_in(base, family), LoraConfig(r=4, target_modules=family.targets, **settings)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(std=0.4)
    model.save_pretrained(folder)
    return folder


def labels(folder: Path, family: Adapted, dtype: str = "float32") -> list[Any]:
    chosen = load_task(family.task).Options(task=family.task, model=str(folder), dtype=dtype)
    checkpoint = find_checkpoint(str(folder))
    load_task(family.task).check(chosen, checkpoint)
    label = Label("it", chosen, checkpoint, device="cpu", batch_s=1e6)
    found: Any = label.label([Clip(wave, len(wave) / RATE) for wave in SOUNDS])
    key = "text" if family.task == ASR else "scores"
    return [row[key] for row in found]


def pefts(base: Path, adapter: Path, family: Adapted) -> list[Any]:
    """What the pipeline says with the adapter's layers beside the model's, not merged."""
    from peft import PeftModel
    from transformers import AutoFeatureExtractor, AutoTokenizer, pipeline

    model: Any = PeftModel.from_pretrained(model_in(base, family), str(adapter)).base_model
    parts: dict[str, Any] = {"feature_extractor": AutoFeatureExtractor.from_pretrained(base)}
    if family.task == ASR:
        parts["tokenizer"] = AutoTokenizer.from_pretrained(base)
    pipe: Any = pipeline(family.task, model=model.model, device="cpu", **parts)
    if family.task != ASR:
        return [[one["score"] for one in pipe(wave.copy(), top_k=5)] for wave in SOUNDS]
    call: dict[str, Any] = {}
    if family.auto.endswith("Seq2Seq"):
        call = {"generate_kwargs": {"num_beams": 1, "task": "transcribe"}}
    return [pipe(wave.copy(), **call)["text"].strip() for wave in SOUNDS]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Adapted:
    return FAMILIES[request.param]


@pytest.fixture
def base(family: Adapted, tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    return family.make(tmp_path / "base")


def same(found: list[Any], expected: list[Any]) -> bool:
    if isinstance(expected[0], str):
        return found == expected
    return all(a == pytest.approx(b, abs=1e-4) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside the base model's weights"])
def test_an_adapter_has_the_labels_that_peft_gives_it(
    beside: bool, family: Adapted, base: Path, tmp_path: Path
) -> None:
    plain = labels(base, family)
    adapter = lora(base, tmp_path / "lora", family)
    expected = pefts(base, adapter, family)
    if beside:  # whatever it names then
        whole = shutil.copytree(base, tmp_path / "whole")
        shutil.copytree(adapter, whole, dirs_exist_ok=True)
        path = whole / "adapter_config.json"
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "x/y"})
        )
        adapter = whole
    found = labels(adapter, family)
    assert same(found, expected) and not same(found, plain)
    assert len(labels(adapter, family, "auto")) == len(SOUNDS)


def test_modules_saved_whole_are_the_adapters(tmp_path: Path) -> None:
    family = FAMILIES["classifier"]
    (tmp_path / "base").mkdir()
    base = family.make(tmp_path / "base")
    adapter = lora(base, tmp_path / "lora", family, modules_to_save=["classifier"])
    assert same(labels(adapter, family), pefts(base, adapter, family))


def test_a_tokenizer_beside_the_adapter_is_the_adapters(tmp_path: Path) -> None:
    family, base = FAMILIES["ctc"], tmp_path / "base"
    base.mkdir()
    adapter = lora(family.make(base), tmp_path / "lora", family)
    plain = labels(adapter, family)
    vocabulary = json.loads((base / "vocab.json").read_text())
    for file in ("tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(base / file, adapter)
    capitals = {token.upper() if len(token) == 1 else token: n for token, n in vocabulary.items()}
    (adapter / "vocab.json").write_text(json.dumps(capitals))
    assert labels(adapter, family) == [text.upper() for text in plain]


def test_a_table_is_one_of_the_adapter_and_the_base(tmp_path: Path) -> None:
    family, base = FAMILIES["whisper"], tiny_whisper(tmp_path / "base")
    adapter = lora(base, tmp_path / "lora", family)
    first = find_checkpoint(str(adapter)).digest()
    assert first not in (find_checkpoint(str(base)).digest(), "")
    path = base / "generation_config.json"
    path.write_text(path.read_text() + "\n")
    second = find_checkpoint(str(adapter)).digest()
    path = adapter / "adapter_config.json"
    path.write_text(path.read_text() + "\n")
    assert len({first, second, find_checkpoint(str(adapter)).digest()}) == 3


def test_every_node_must_have_the_adapter_and_the_base(tmp_path: Path) -> None:
    """`jobs.shared_storage` looks for these folders on each node before a run."""
    family, base = FAMILIES["whisper"], tiny_whisper(tmp_path / "base")
    adapter = lora(base, tmp_path / "lora", family)
    assert find_checkpoint(str(base)).local_folders == (str(base),)
    assert find_checkpoint(str(adapter)).local_folders == (str(base), str(adapter))


def test_an_adapter_on_a_store_is_fetched_with_its_base(tmp_path: Path) -> None:
    family, base = FAMILIES["whisper"], tiny_whisper(tmp_path / "base")
    adapter = lora(base, tmp_path / "lora", family)
    found = on_this_node(find_model(adapter.as_uri(), None, {}))
    assert found.name == str(base) and found.source == adapter.as_uri()
    assert found.local_folders == (str(base),)  # the adapter is fetched on each node
    assert found.digest() == find_checkpoint(str(adapter)).digest()


def edited(folder: Path, **keys: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no base": (lambda f: edited(f, base_model_name_or_path=None), "found None: name it there"),
    "a base that is not there": (
        lambda f: edited(f, base_model_name_or_path="/nowhere/base"),
        "expected the base model '/nowhere/base', named as base_model_name_or_path",
    ),
    "a prompt": (lambda f: edited(f, peft_type="PREFIX_TUNING"), "found peft_type 'PREFIX_TUNING'"),
    "a pickle": (pickled, "found only adapter_model.bin, a pickle,"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "found none in"),
    "no JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "expected a JSON object in"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_adapter_that_cannot_be_merged_is_refused(name: str, tmp_path: Path) -> None:
    change, message = REFUSED[name]
    adapter = lora(tiny_whisper(tmp_path / "base"), tmp_path / "lora", FAMILIES["whisper"])
    change(adapter)
    said = refusal(adapter, Family(tiny_whisper, ASR, {}, {}))
    assert message in said and "tasks.it.model: expected" in said and str(adapter) in said


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    adapter = lora(tiny_whisper(tmp_path / "base"), tmp_path / "lora", FAMILIES["whisper"])
    (tmp_path / "ctc").mkdir()
    for make, why in (
        (lambda folder: tiny_ctc(folder, "wav2vec2"), "a layer that it does not have"),
        (lambda folder: tiny_ctc(folder, "hubert"), "a layer that it does not have"),
    ):
        shutil.rmtree(tmp_path / "ctc", ignore_errors=True)
        edited(adapter, base_model_name_or_path=str(make(tmp_path / "ctc")))
        said = refusal(adapter, Family(tiny_whisper, ASR, {}, {}))
        assert f"expected an adapter of the model in {tmp_path / 'ctc'}" in said and why in said


def test_an_adapter_of_another_size_is_refused(tmp_path: Path) -> None:
    family = FAMILIES["ctc"]
    tiny_ctc(tmp_path / "base", "wav2vec2")
    wider = tiny_ctc(tmp_path / "wider", "wav2vec2", hidden_size=48, num_attention_heads=4)
    adapter = lora(tmp_path / "base", tmp_path / "lora", family)
    edited(adapter, base_model_name_or_path=str(wider))
    assert "for a weight of (48, 48)" in refusal(adapter, Family(family.make, ASR, {}, {}))


def test_without_peft_an_adapter_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_whisper(tmp_path / "base")
    lora(base, base, FAMILIES["whisper"])  # beside the weights: nothing else would be amiss
    for name in [name for name in sys.modules if name.split(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)  # type: ignore[arg-type]
    said = refusal(base, Family(tiny_whisper, ASR, {}, {}))
    assert 'found none: pip install "earmark[peft]"' in said and "LORA" in said


def test_a_whole_run_labels_with_the_adapter(tmp_path: Path) -> None:
    family = FAMILIES["ctc"]
    adapter = lora(tiny_ctc(tmp_path / "base", "wav2vec2", seed=2), tmp_path / "lora", family)
    task = {"task": ASR, "model": str(adapter), "dtype": "float32"}
    job = Job(tmp_path, adapter, tasks={"said": task})
    import soundfile

    for number, wave in enumerate(SOUNDS):
        soundfile.write(job.audio / f"{number}.wav", wave, RATE, "FLOAT")
    done = earmark("run", job.config)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = job.by_name()
    assert [rows[f"{n}.wav"]["said_text"] for n in range(2)] == labels(adapter, family)
