"""Weights of one network in a folder of the diffusers layout: read and written again.

One rule maps names, no table: a parameter's path is its name in the file, a kernel,
scale or embedding being its ``weight``. Dense kernels are transposed, convolutions turn
from OIHW to HWIO. Old names of the autoencoder's attention are understood. A tensor
goes back into the file, under the name and in the dtype in which it came.
"""

import dataclasses
import json
import pathlib
from collections.abc import Container, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # NumPy knows bfloat16 by it; JAX brings it
import numpy as np
from flax import traverse_util

from experiments.engine.formats import CONVERT, first_line
from experiments.files import to_json
from experiments.models.border import ModelError, flatten

SUFFIXES = {".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx"}
SUFFIXES |= {".onnx_data", ".pb", ".h5", ".gguf", ".xml"}
_DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_AXES = {2: (1, 0), 4: (2, 3, 1, 0)}  # of a kernel here, among the file's
_LEGACY = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_BUFFER = "position_ids"  # numbers that some files hold and no network reads


@dataclasses.dataclass(frozen=True)
class Files:
    """How a network's weights lay in its folder.

    Attributes:
      names: each parameter's file and name there, by its path.
      forms: each parameter's shape here and dtype there, by its path.
      metadata: each file's own.
      index: name and content of the file that lists the shards; None without shards.
      buffers: tensors that are no parameters, by file and name.
    """

    names: dict[tuple[str, ...], tuple[str, str]]
    forms: dict[tuple[str, ...], tuple[tuple[int, ...], np.dtype]]
    metadata: dict[str, dict[str, str]]
    index: tuple[str, dict[str, Any]] | None
    buffers: dict[tuple[str, str], np.ndarray]


def read(folder: pathlib.Path, stem: str, shapes: Any) -> tuple[dict[str, Any], Files]:
    """Reads a network's parameters.

    Args:
      folder: Such as ``unet/``.
      stem: How the file's name starts: ``model`` or ``diffusion_pytorch_model``.
      shapes: The network's parameters, or their shapes.

    Returns:
      The parameters, float32, in nested dictionaries, and how they lay in the files.

    Raises:
      ModelError: Files or tensors are missing, unexpected, of another shape or dtype,
        damaged, or pickles; the message names them in a line.
    """
    paths, index = _find(folder, stem)
    where = folder / (index[0] if index else paths[0].name)
    opened = _open(paths)
    tensors = {name: file for file, names in opened.items() for name in names.keys()}  # noqa: SIM118
    wanted = flatten(shapes)
    names = {path: _present(name_of(path), tensors) for path in wanted}
    buffers = {name for name in tensors if name.rpartition(".")[2] == _BUFFER}
    missing = sorted(set(names.values()) - tensors.keys())
    unexpected = sorted(tensors.keys() - set(names.values()) - buffers)
    if missing or unexpected:
        raise ModelError(
            f"{where} lacks {_some(missing)} and has {_some(unexpected)} that the "
            "network of config.json has not; give weights and config.json of one model."
        )
    leaves, forms = {}, {}
    for path, name in names.items():
        entry = opened[tensors[name]].get_slice(name)
        shape, dtype = tuple(entry.get_shape()), entry.get_dtype()
        if shape != (fits := _file_shape(path, wanted[path].shape)):
            raise ModelError(
                f"{where} has {name} of shape {shape}, wanted {fits} by config.json; "
                "give weights and config.json of one model."
            )
        if dtype not in _DTYPES:
            raise ModelError(
                f"{where} has {name} in {dtype}, wanted one of {', '.join(_DTYPES)}; "
                "save it so."
            )
        tensor = opened[tensors[name]].get_tensor(name)
        if not np.isfinite(tensor).all():
            raise ModelError(
                f"{where} has {name} with a value that is not finite; it is damaged."
            )
        tensor = tensor.transpose(_axes(path, tensor.ndim)).astype(np.float32)
        leaves[path], forms[path] = jnp.asarray(tensor), (tensor.shape, _DTYPES[dtype])
    found = Files(
        names={path: (tensors[name], name) for path, name in names.items()},
        forms=forms,
        metadata={file: handle.metadata() or {} for file, handle in opened.items()},
        index=index,
        buffers={
            (tensors[name], name): opened[tensors[name]].get_tensor(name)
            for name in buffers
        },
    )
    return traverse_util.unflatten_dict(leaves), found


def write(
    folder: pathlib.Path,
    params: Any,
    files: Files,
    dtype: jax.typing.DTypeLike | None = None,
) -> None:
    """Writes parameters as they lay when they were read.

    Args:
      folder: Is there; gets the files.
      params: The parameters, of the names that were read.
      files: From :func:`read`.
      dtype: Of all tensors instead of each one's own, in files without a variant's
        name.

    Raises:
      ModelError: Parameters are missing, unexpected, of another shape, not finite, or
        beyond what the dtype holds; the message names one.
    """
    import safetensors.numpy

    leaves = flatten(params)
    missing = sorted(name_of(path) for path in files.names.keys() - leaves.keys())
    unexpected = sorted(name_of(path) for path in leaves.keys() - files.names.keys())
    if missing or unexpected:
        raise ModelError(
            f"Got parameters of {folder.name} without {_some(missing)} and with "
            f"{_some(unexpected)}; give those that were loaded."
        )
    if dtype is not None and np.dtype(dtype) not in _DTYPES.values():
        raise ModelError(
            f"Got dtype {np.dtype(dtype)}, wanted float32, float16 or bfloat16."
        )

    def named(file: str) -> str:
        return file if dtype is None else file.replace(".fp16", "")

    by_file: dict[str, dict[str, np.ndarray]] = {file: {} for file in files.metadata}
    for (file, name), buffer in files.buffers.items():
        by_file[file][name] = buffer
    for path, (file, name) in files.names.items():
        shape, to = files.forms[path]
        to, what = to if dtype is None else np.dtype(dtype), f"{folder.name}: {name}"
        if np.shape(leaves[path]) != shape:
            raise ModelError(
                f"{what} came in the shape {np.shape(leaves[path])}, wanted {shape}; "
                "give parameters like those that were loaded."
            )
        by_file[file][name] = _tensor(path, leaves[path], to, what)
    for file, tensors in by_file.items():
        # Readers of the other libraries ask for a format in the metadata.
        metadata = {"format": "pt", **files.metadata[file]}
        try:
            safetensors.numpy.save_file(tensors, folder / named(file), metadata)
        except Exception as error:  # the package's own, such as for a full disk
            raise ModelError(
                f"{folder.name}/{named(file)} cannot be written: {first_line(error)}."
            ) from error
    if files.index:
        name, content = files.index
        total = sum(x.nbytes for tensors in by_file.values() for x in tensors.values())
        places = {key: named(file) for key, file in content["weight_map"].items()}
        about = {**content.get("metadata", {}), "total_size": total}
        text = to_json({"metadata": about, "weight_map": places}) + "\n"
        (folder / named(name)).write_text(text, "utf-8")


def name_of(path: Iterable[str]) -> str:
    """A parameter's name in a file.

    Example:
      >>> name_of(("conv_in", "kernel")), name_of(("norm", "bias"))
      ('conv_in.weight', 'norm.bias')
    """
    *module, leaf = path
    return ".".join([*module, "bias" if leaf == "bias" else "weight"])


def _axes(path: tuple[str, ...], ndim: int) -> tuple[int, ...]:
    """What turns a file's tensor into the parameter here."""
    return _AXES[ndim] if path[-1] == "kernel" else tuple(range(ndim))


def _file_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the file of a parameter of that shape here."""
    axes = _axes(path, len(shape))
    return tuple(shape[axes.index(i)] for i in range(len(shape)))


def _tensor(path, leaf, dtype: np.dtype, what: str) -> np.ndarray:
    """A parameter as the file has it."""
    leaf = np.asarray(leaf)
    with np.errstate(over="ignore"):
        tensor = leaf.astype(dtype)
    if not np.isfinite(tensor).all():
        if not np.isfinite(leaf).all():
            raise ModelError(f"{what} is not finite; it would draw nothing.")
        raise ModelError(
            f"{what} is beyond what {dtype} holds; save with dtype=numpy.float32."
        )
    return np.ascontiguousarray(tensor.transpose(np.argsort(_axes(path, leaf.ndim))))


def _present(name: str, tensors: Container[str]) -> str:
    """The name that a file has for a parameter, which may be an old one."""
    if name not in tensors:
        for new, old in _LEGACY.items():
            older = name.replace(f".{new}.", f".{old}.")
            if older in tensors:
                return older
    return name


def _find(
    folder: pathlib.Path, stem: str
) -> tuple[list[pathlib.Path], tuple[str, dict[str, Any]] | None]:
    """A network's files, and the index where they are shards."""
    for variant in ("", ".fp16"):
        if (path := folder / f"{stem}{variant}.safetensors").exists():
            return [path], None
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if index.exists():
            try:
                content = json.loads(index.read_text("utf-8"))
                names = sorted(set(content["weight_map"].values()))
                outside = [x for x in names if pathlib.PurePath(x).name != x]
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelError(f"{index} is not readable: {error!r}.") from error
            lost = [x for x in names if x in outside or not (folder / x).exists()]
            if lost or not names:
                raise ModelError(
                    f"{index} lists {_some(lost)}, which is not beside it."
                )
            return [folder / name for name in names], (index.name, content)
    wanted = folder / f"{stem}.safetensors"
    pickles = [x for x in sorted(folder.glob("*")) if x.suffix in (".bin", ".ckpt")]
    if pickles:
        raise ModelError(
            f"{pickles[0]} is a pickle, which can run any code when it is read, so it "
            "is not. If you trust it, convert it where PyTorch is: "
            f"{CONVERT.format(pickles[0], wanted)}"
        )
    raise ModelError(f"{wanted} is not there; give a folder with safetensors in it.")


def _open(paths: list[pathlib.Path]) -> dict[str, Any]:
    """Files of safetensors by name, opened but not read."""
    try:
        import safetensors
    except ImportError as error:
        raise ModelError(
            "Pipelines need the package safetensors: pip install "
            "'mujax[text-to-image]'."
        ) from error
    files = {}
    for path in paths:
        try:
            files[path.name] = safetensors.safe_open(path, framework="numpy")
        except Exception as error:  # the package's own, and the system's
            raise ModelError(f"{path} is not readable: {first_line(error)}.") from error
    return files


def _some(names: list[str]) -> str:
    """Names as text, at most three of them."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) + more) or "nothing"
