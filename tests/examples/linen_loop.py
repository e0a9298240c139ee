import jax
import optax
from flax import linen

from mujax.saliency import gradient_saliency, top_fraction_mask
from mujax.transforms import correct_updates, mask_updates


def unlearn(module, variables, forget, retain_batches):
    def loss_fn(params, batch, state, train=False):
        variables = {"params": params, **state}
        logits, new_state = module.apply(variables, batch[0], train, mutable=[*state])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()
        return loss, new_state  # with the moved statistics

    @jax.jit
    def step(params, state, opt_state, batch):
        grads, new_state = jax.grad(loss_fn, has_aux=True)(params, batch, state, True)
        away = jax.grad(lambda p: -loss_fn(p, forget, state)[0])(params)
        updates, opt_state = tx.update(grads, opt_state, params, forget_grads=away)
        return optax.apply_updates(params, updates), new_state, opt_state

    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
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
    return {"params": params, **state}


# The README shows what stands above; below is a model to unlearn from.


class Net(linen.Module):
    """A hidden layer with BatchNorm."""

    @linen.compact
    def __call__(self, x, train):
        x = linen.Dense(64)(x)
        x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return linen.Dense(10)(linen.relu(x))


def main():
    """Trains a network on the digits and forgets the threes; returns what it saw."""
    from tests import examples

    everything, forget, retain_batches = examples.digits()
    net, tx = Net(), optax.adam(1e-2)
    original = net.init(jax.random.key(0), everything[0][:1], train=False)
    opt_state = tx.init(original["params"])

    @jax.jit
    def train(variables, opt_state):
        def loss_fn(params):
            moving = {**variables, "params": params}
            logits, state = net.apply(
                moving, everything[0], True, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits, everything[1]
            )
            return losses.mean(), state

        params = variables["params"]
        grads, state = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return {"params": optax.apply_updates(params, updates), **state}, opt_state

    for _ in range(100):
        original, opt_state = train(original, opt_state)
    before = examples.report(lambda x: net.apply(original, x, train=False))
    unlearned = unlearn(net, original, forget, 5 * retain_batches)
    after = examples.report(lambda x: net.apply(unlearned, x, train=False))
    return before, after, original, unlearned


if __name__ == "__main__":
    main()
