"""The layers that the networks share.

Modules are Flax NNX modules used as immutable pytrees: a constructor makes parameters, a call is a pure function, and
`jax.*` transforms do the rest. Layers compute in the weights' dtype, norms and rotations in float32.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxpa.arrays import Array, Float, Float32

Module = TypeVar("Module", bound=nnx.Module)


def stack(count: int, make: Callable[[nnx.Rngs], Module], rngs: nnx.Rngs) -> Module:
    """`count` modules as one, every parameter with a leading axis L: what `jax.lax.scan` runs over."""
    return jax.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(rngs.params(), count))


class Numbered(nnx.Module, Generic[Module]):
    """Modules called "0", "1", ... in paths: blocks that differ in shape, or that a device wants one by one."""

    def __init__(self, modules: Iterable[Module]):
        self.count = 0
        for module in modules:
            setattr(self, str(self.count), module)
            self.count += 1

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Module:
        return getattr(self, str(range(self.count)[index]))

    def __iter__(self) -> Iterator[Module]:
        return (self[index] for index in range(self.count))


class Kernel(Protocol):
    """What a `Linear` may hold in place of an array (In, Out): quantised weights, or weights plus a low-rank delta.

    A kernel is a pytree of arrays, stacked and scanned like any parameter. `contract` returns einsum(subscripts, x,
    kernel); `shape` is (In, H, Out / H) or (H, In / H, Out) where the einsum splits one of the kernel's axes. `rows` is
    the same tree with `split` for every array that lies apart where the inputs do, and `whole` for the rest.
    """

    def contract(self, subscripts: str, x: jax.Array, shape: tuple[int, ...]) -> jax.Array: ...

    def rows(self, split: Any, whole: Any) -> "Kernel": ...


class Linear(nnx.Module):
    """y = x W + b. Every projection of every network goes through this layer.

    kernel (In, Out), an array or a `Kernel`; bias (Out,) or None. A kernel that `to_heads` or `from_heads` reads may as
    well have an axis of heads: (In, H, Out / H), (H, In / H, Out). Products of float32 are float32 on every device: a
    TPU, and a GPU with TF32, would round their inputs otherwise.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        kernel_init: jax.nn.initializers.Initializer = nnx.initializers.lecun_normal(),  # noqa: B008 - a function
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (inputs, outputs), dtype))
        self.bias = nnx.Param(jnp.zeros((outputs,), dtype)) if use_bias else None

    def __call__(self, x: Float[Array, "*rows In"]) -> Float[Array, "*rows Out"]:
        y = contract("...i,io->...o", x, self.kernel.get_value())
        return y if self.bias is None else y + self.bias[...]

    def to_heads(self, x: Float[Array, "B S In"], heads: int) -> Float[Array, "B {heads} S Dh"]:
        """The outputs, shared out to heads."""
        kernel = self.kernel.get_value()

        def heads_last(x: Array, kernel: Any) -> Array:  # cuBLAS adds a bias to rows only
            y = contract("...i,io->...o", x, kernel, (x.shape[-1], -1))
            y = y if self.bias is None else y + self.bias[...]
            return y.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

        def heads_first(x: Array, kernel: Any) -> Array:  # a TPU's product comes out in any order
            y = contract("bsi,iho->bhso", x, kernel, (x.shape[-1], heads, -1))
            return y if self.bias is None else y + self.bias[...].reshape(heads, 1, -1)

        def alone(x: Array, kernel: Any) -> Array:
            # XLA makes one product of those of a short sequence, and for it a copy of their kernels, at every step.
            return heads_last(*jax.lax.optimization_barrier((x, kernel)))

        return jax.lax.platform_dependent(x, kernel, tpu=heads_first, cuda=alone, default=heads_last)

    def from_heads(self, x: Float[Array, "B H S Dh"]) -> Float[Array, "B S Out"]:
        """The outputs for inputs that are shared out to heads."""
        y = contract_heads(x, self.kernel.get_value())
        return y if self.bias is None else y + self.bias[...]


def contract(subscripts: str, x: Float[Array, "..."], kernel: Any, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
    """einsum(subscripts, x, kernel), with the kernel reshaped to `shape`; (): as it is."""
    if not isinstance(kernel, jax.Array):
        return kernel.contract(subscripts, x, shape)
    kernel = kernel.reshape(shape) if shape else kernel
    return jnp.einsum(subscripts, x, kernel, precision=precision(x.dtype))


def contract_heads(x: Float[Array, "B H S Dh"], kernel: Any) -> Float[Array, "B S Out"]:
    """The product with a kernel (H Dh, Out)."""
    return contract("bhsi,hio->bso", x, kernel, (x.shape[1], x.shape[3], -1))


def precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """The precision of products of this dtype: float32 stays float32 on every device."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def layer_norm(x: Float[Array, "*rows D"], eps: float = 1e-6) -> Float[Array, "*rows D"]:
    """Layer norm over the last axis, without scale and bias (adaLN supplies them); f32 inside."""
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + eps)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root mean square norm over the last axis with a learned scale; f32 inside."""

    def __init__(self, width: int, *, eps: float = 1e-6, dtype: DTypeLike = jnp.float32):
        self.scale = nnx.Param(jnp.ones((width,), dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + self.eps)
        return (normed * self.scale.astype(jnp.float32)).astype(x.dtype)


class MLPEmbedder(nnx.Module):
    """Linear, SiLU, linear: how time, guidance and the pooled text become one vector."""

    def __init__(self, in_width: int, width: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.in_layer = Linear(in_width, width, rngs=rngs, dtype=dtype)
        self.out_layer = Linear(width, width, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "*rows In"]) -> Float[Array, "*rows D"]:
        return self.out_layer(jax.nn.silu(self.in_layer(x)))


def timestep_embedding(
    t: Float[Array, " B"], width: int = 256, max_period: float = 10_000.0
) -> Float32[Array, "B {width}"]:
    """Sinusoids of 1000 t, cosines first, of t in [0, 1].

    The frequencies are the exact ones of the reference's float32 exponents, rounded once. The reference's own `exp`
    is up to one unit in the last place off, which turns the phase at 1000 t = 1000 by up to 6e-5: its embedding
    differs from this one by 2e-5 at t = 1, and by 1e-4 at guidance 4.
    """
    half = width // 2
    exponent = np.float32(-math.log(max_period)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponent.astype(np.float64)).astype(np.float32)
    phase = (1000.0 * t.astype(jnp.float32))[:, None] * frequencies  # (B, width / 2)
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], -1)
