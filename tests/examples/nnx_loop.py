import jax
import optax
from flax import nnx

from mujax.saliency import gradient_saliency, top_fraction_mask
from mujax.transforms import correct_updates, mask_updates


def unlearn(model, forget, retain_batches):
    def loss_fn(params, batch, state, train=False):
        model = nnx.merge(graphdef, params, state, copy=True)  # the gradient needs it
        model.train() if train else model.eval()
        logits, labels = model(batch[0]), batch[1]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, nnx.split(model, nnx.Param, ...)[2]  # with the moved statistics

    @jax.jit
    def step(params, state, opt_state, batch):
        grads, new_state = jax.grad(loss_fn, has_aux=True)(params, batch, state, True)
        away = jax.grad(lambda p: -loss_fn(p, forget, state)[0])(params)
        updates, opt_state = tx.update(grads, opt_state, params, forget_grads=away)
        return optax.apply_updates(params, updates), new_state, opt_state

    graphdef, params, state = nnx.split(model, nnx.Param, ...)  # once, outside of jit
    scores = gradient_saliency(lambda p, b: loss_fn(p, b, state)[0], params, [forget])
    tx = optax.chain(
        correct_updates(threshold=0.45, forget_weight=1.0),
        optax.add_decayed_weights(5e-4),
        optax.sgd(5e-2, momentum=0.9),
        mask_updates(top_fraction_mask(scores, 0.5)),  # last: the frozen stay frozen
    )
    opt_state = tx.init(params)
    for batch in retain_batches:
        params, state, opt_state = step(params, state, opt_state, batch)
    nnx.update(model, params, state)


# The README shows what stands above; below is a model to unlearn from.


def main():
    """Trains a network on the digits, forgets the threes; returns what it saw."""
    from tests import examples

    everything, forget, retain_batches = examples.digits()
    model = nnx.Sequential(
        nnx.Linear(64, 64, rngs=nnx.Rngs(0)),
        nnx.BatchNorm(64, momentum=0.9, rngs=nnx.Rngs(1)),
        nnx.relu,
        nnx.Linear(64, 10, rngs=nnx.Rngs(2)),
    )
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def train(model, optimizer, batch):
        def loss_fn(model):
            xent = optax.softmax_cross_entropy_with_integer_labels
            return xent(model(batch[0]), batch[1]).mean()

        optimizer.update(model, nnx.grad(loss_fn)(model))

    for _ in range(100):
        train(model, optimizer, everything)
    original = nnx.clone(model)
    original.eval()
    before = examples.report(original)
    unlearn(model, forget, 5 * retain_batches)
    model.eval()
    after = examples.report(model)
    return before, after, original, model


if __name__ == "__main__":
    main()
