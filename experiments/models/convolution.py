"""A convolution that is fast on CPU inside ``scan`` and ``vmap``.

On CPU, XLA runs the gradients of ``lax.conv_general_dilated`` 10 to 50 times slower
inside ``lax.scan``, ``lax.map`` and ``vmap`` than in a Python loop. The same
convolution written as image patches times a matrix does not slow down. On accelerators
the native operation is the fast one. A test holds both equal.

Every flax convolution takes it: ``nnx.Conv(..., conv_general_dilated=...)`` and
``nn.Conv(..., conv_general_dilated=...)``.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

NHWC = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    use_patches: bool | None = None,
    **options,
) -> jax.Array:
    """Convolves by the means that is fast on this machine's default backend.

    Args:
      lhs: Images of shape (N, H, W, C).
      rhs: Kernel of shape (kh, kw, C, F).
      window_strides: Steps between windows, (rows, columns).
      padding: ``"SAME"``, ``"VALID"`` or ``((low, high), (low, high))``.
      use_patches: True for ``patch_convolution``, False for
        ``jax.lax.conv_general_dilated``; by default True on CPU alone. To fix it in a
        model, pass ``functools.partial(conv_general_dilated, use_patches=False)``.
      **options: The remaining arguments of ``jax.lax.conv_general_dilated``.

    Returns:
      Features of shape (N, H', W', F).

    Example:
      >>> images, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 1))
      >>> options = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"))
      >>> conv_general_dilated(images, kernel, (2, 2), "SAME", **options)[0, :, :, 0]
      Array([[18., 12.],
             [12.,  8.]], dtype=float32)
    """
    if use_patches is None:
        use_patches = jax.default_backend() == "cpu"
    convolve = patch_convolution if use_patches else jax.lax.conv_general_dilated
    return convolve(lhs, rhs, window_strides, padding, **options)


def patch_convolution(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: (
        jax.lax.ConvDimensionNumbers | tuple[str, str, str] | None
    ) = NHWC,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: jax.lax.PrecisionLike = None,
    preferred_element_type: jax.typing.DTypeLike | None = None,
    out_sharding=None,
) -> jax.Array:
    r"""Convolves NHWC images with an HWIO kernel as patches times a matrix.

    .. math::
      Y_{nhw\cdot} = \Big[X_{n,\,s h + d i,\,s w + d j,\cdot}\Big]_{ij}\, K,
      \qquad K \in \mathbb{R}^{(k_h k_w C) \times F}

    with stride :math:`s` and kernel dilation :math:`d`: one strided slice for each of
    the kernel's kh·kw positions, joined on channels, then a single product.

    Args:
      lhs: Images of shape (N, H, W, C).
      rhs: Kernel of shape (kh, kw, C, F).
      window_strides: Steps between windows, (rows, columns).
      padding: ``"SAME"``, ``"VALID"`` or ``((low, high), (low, high))``.
      lhs_dilation: None or ones; dilated images are not supported.
      rhs_dilation: Steps between kernel entries, (rows, columns); None for ones.
      dimension_numbers: Must stand for NHWC images and HWIO kernels.
      feature_group_count: Must be 1.
      batch_group_count: Must be 1.
      precision: As in ``jax.lax.dot_general``.
      preferred_element_type: As in ``jax.lax.dot_general``.
      out_sharding: As in ``jax.lax.dot_general``.

    Returns:
      Features of shape (N, H', W', F), equal to ``jax.lax.conv_general_dilated``.

    Raises:
      ValueError: For another layout, groups, or dilated images.

    Example:
      >>> images, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 1))
      >>> patch_convolution(images, kernel, (1, 1), "VALID")[0, :, :, 0]
      Array([[18., 18.],
             [18., 18.]], dtype=float32)
    """
    _check_supported(
        lhs,
        rhs,
        lhs_dilation,
        dimension_numbers,
        feature_group_count,
        batch_group_count,
    )
    kernel_height, kernel_width, _, features = rhs.shape
    down, right = rhs_dilation or (1, 1)
    reach = (down * (kernel_height - 1) + 1, right * (kernel_width - 1) + 1)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(
            lhs.shape[1:3], reach, window_strides, padding
        )
    zero = jnp.zeros((), lhs.dtype)
    margins = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
    lhs = jax.lax.pad(lhs, zero, margins)
    rows = max(lhs.shape[1] - reach[0] + 1, 0)
    columns = max(lhs.shape[2] - reach[1] + 1, 0)
    patches = [
        lhs[:, i : i + rows : window_strides[0], j : j + columns : window_strides[1]]
        for i in range(0, reach[0], down)
        for j in range(0, reach[1], right)
    ]
    return jax.lax.dot_general(
        jnp.concatenate(patches, axis=-1),
        rhs.reshape(-1, features),
        (((3,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )


def _check_supported(lhs, rhs, lhs_dilation, dimension_numbers, features, batches):
    """Raises for what ``patch_convolution`` does not do, with the way out."""
    hint = "pass use_patches=False (or jax.lax.conv_general_dilated itself)"
    if lhs.ndim != 4 or rhs.ndim != 4:
        raise ValueError(
            f"Got images of shape {lhs.shape} and a kernel of shape {rhs.shape}; "
            f"patches need NHWC and HWIO, four axes each: {hint}."
        )
    layout = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    if layout != jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, NHWC):
        raise ValueError(
            f"Got dimension_numbers={dimension_numbers}; patches need {NHWC}: {hint}."
        )
    if features != 1 or batches != 1:
        raise ValueError(
            f"Got feature_group_count={features}, batch_group_count={batches}; patches "
            f"need 1 for both: {hint}."
        )
    if lhs_dilation is not None and tuple(lhs_dilation) != (1, 1):
        raise ValueError(
            f"Got lhs_dilation={tuple(lhs_dilation)}; patches need (1, 1): {hint}."
        )
    if lhs.shape[3] != rhs.shape[2]:
        raise ValueError(
            f"Got images with {lhs.shape[3]} channels (axis 3 of {lhs.shape}) and a "
            f"kernel for {rhs.shape[2]} (axis 2 of {rhs.shape}); make them equal."
        )
