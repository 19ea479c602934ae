"""Networks against closed forms, and against other ways to compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from l2o.tasks.networks.autoencoder import Autoencoder, VariationalAutoencoder
from l2o.tasks.networks.byte_mlp import ByteMLP
from l2o.tasks.networks.conv import Conv, ConvNet, ResNet
from l2o.tasks.networks.mlp import MLP
from l2o.tasks.networks.recurrent import ByteRNN
from l2o.tasks.networks.transformer import Block, ByteTransformer, PatchNet


def rngs(seed: int = 0) -> nnx.Rngs:
    return nnx.Rngs(seed)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("side", [4, 5])
def test_patches_times_a_matrix_are_a_convolution(stride, width, side, key):
    conv = Conv((2, 3), width, stride, rngs=rngs())
    conv.bias[...] = jnp.arange(3.0)
    images = jax.random.normal(key, (4, side, side, 2))
    before = (width - 1) // 2
    pad = (before, width - 1 - before)
    expected = jax.lax.conv_general_dilated(
        *(images, conv.kernel[...], (stride, stride), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(conv(images), expected + jnp.arange(3.0), rtol=1e-5, atol=1e-5)


def test_a_tanh_mlp_is_what_it_says(key):
    mlp = MLP((3, 4, 2), nnx.tanh, rngs=rngs())
    x = jax.random.normal(key, (5, 3))
    (w0, b0), (w1, b1) = [(layer.kernel[...], layer.bias[...]) for layer in mlp.layers]
    np.testing.assert_allclose(mlp(x), jnp.tanh(x @ w0 + b0) @ w1 + b1, rtol=1e-5, atol=1e-7)


def test_a_normalized_mlp_does_not_depend_on_the_scale_of_its_hidden_weights(key):
    mlp = MLP((3, 64, 2), normalized=True, rngs=rngs())
    x = jax.random.normal(key, (5, 3))
    before = mlp(x)
    mlp.layers[0].kernel[...] *= 10.0
    np.testing.assert_allclose(mlp(x), before, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("inputs", [3, 300])
def test_networks_begin_near_guessing_whatever_the_number_of_inputs(inputs, key):
    mlp = MLP((inputs, 256, 256, 10), rngs=rngs())
    hidden = MLP((inputs, 256, 256), rngs=rngs())  # its outputs are a tenth as wide, too
    x = jax.random.normal(key, (1000, inputs))
    # He's initial weights keep the mean square of a ReLU network, and 2 / 100 of it comes out.
    expected = (0.02 * 256 / 256) ** 0.5
    assert np.std(mlp(x)) == pytest.approx(expected, rel=0.25)
    assert np.std(hidden(x)) == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("kind", ["attention", "causal", "mlp"])
def test_who_sees_whom_in_a_block(kind, key):
    block = Block(4, 6, kind, rngs=rngs())
    x = jax.random.normal(key, (1, 6, 4))
    jacobian = jax.jit(jax.jacobian(lambda x: block(x)[0]))(x)[:, :, 0]  # out, channel, in, channel
    sees = np.any(np.abs(jacobian) > 1e-8, axis=(1, 3))
    expected = np.tril(np.ones((6, 6), bool)) if kind == "causal" else np.ones((6, 6), bool)
    np.testing.assert_array_equal(sees, expected)


def test_attention_does_not_know_the_order_of_tokens(key):
    block, order = Block(4, 6, "attention", rngs=rngs()), np.array([3, 1, 5, 0, 2, 4])
    x = jax.random.normal(key, (2, 6, 4))
    np.testing.assert_allclose(block(x[:, order]), block(x)[:, order], rtol=1e-4, atol=1e-5)


def test_tokens_are_the_patches_of_an_image(key):
    net = PatchNet(6, 2, 4, 0, 3, "attention", rngs=rngs())
    pixels = jax.random.normal(key, (1, 36))
    image = np.asarray(pixels).reshape(6, 6)
    cut = [image[i : i + 2, j : j + 2].ravel() for i in (0, 2, 4) for j in (0, 2, 4)]
    tokens = net.embed(jnp.stack(cut)) + net.positions[...]
    expected = net.head(jnp.mean(net.norm(tokens), axis=0))
    np.testing.assert_allclose(net(pixels)[0], expected, rtol=1e-4, atol=1e-6)


def test_a_residual_network_whose_blocks_give_nothing_is_its_stem(key):
    net = ResNet((1, 4), 2, 3, rngs=rngs())
    for i in (1, 3):
        net.convs[i].kernel[...] *= 0.0
    x = jax.random.normal(key, (2, 16))
    stem = net.stem(x.reshape(2, 4, 4, 1))
    expected = net.head(jnp.mean(nnx.relu(net.norm(stem)), axis=(1, 2)))
    np.testing.assert_allclose(net(x), expected, rtol=1e-5, atol=1e-7)


def test_colours_are_channels(key):
    """Flat pixels have colours last; a kernel that reads one colour alone is a plain conv net."""
    net, grey = ConvNet(4, (3, 2), 5, rngs=rngs()), ConvNet(4, (1, 2), 5, rngs=rngs())
    pixels = jax.random.normal(key, (2, 4, 4, 3))
    net.convs[0].kernel[...] = jnp.zeros((3, 3, 3, 2)).at[:, :, 1:2].set(grey.convs[0].kernel[...])
    net.head = grey.head
    found, expected = net(pixels.reshape(2, -1)), grey(pixels[..., 1].reshape(2, -1))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_batch_normalisation_makes_channels_alike(key):
    x = jax.random.normal(key, (32, 25))
    plain, normalized = (ConvNet(5, (1, 4, 8), 3, normalized=n, rngs=rngs()) for n in (0, 1))
    before = [net(x) for net in (plain, normalized)]
    for net in (plain, normalized):
        net.convs[0].kernel[...] *= 10.0
    assert not np.allclose(plain(x), before[0], rtol=0.1)
    np.testing.assert_allclose(normalized(x), before[1], rtol=1e-3, atol=1e-3)


def test_an_autoencoder_goes_through_its_code(key):
    net = Autoencoder((9, 5, 2), rngs=rngs())
    x = jax.random.normal(key, (4, 9))
    jacobian = jax.jacobian(lambda x: net(x[None])[0])(x[0])
    assert jacobian.shape == (9, 9) and np.linalg.matrix_rank(jacobian, tol=1e-6) == 2


def test_the_code_of_a_variational_autoencoder():
    net = VariationalAutoencoder((9, 5, 2), rngs=rngs())
    last = net.encoder.layers[1]
    last.kernel[...] *= 0.0
    mean, log_std = np.array([0.5, -1.0]), np.array([0.3, -0.2])
    last.bias[...] = jnp.concatenate([mean, log_std])
    x = jnp.zeros((2000, 9))
    # Kingma and Welling 2014, appendix B.
    expected = -0.5 * np.sum(1.0 + 2.0 * log_std - mean**2 - np.exp(2.0 * log_std))
    np.testing.assert_allclose(net(x).divergence, np.full(2000, expected), rtol=1e-5)

    codes = []
    net.decoder = lambda code: codes.append(np.asarray(code)) or code
    net.train(), net(x), net.eval(), net(x)
    drawn, plain = codes
    np.testing.assert_allclose(plain, np.tile(mean, (2000, 1)), rtol=1e-5)
    allowed = 4.0 * np.exp(log_std) / 2000**0.5
    assert np.all(np.abs(drawn.mean(0) - mean) < allowed)
    assert np.all(np.abs(drawn.std(0) - np.exp(log_std)) < allowed)


@pytest.mark.parametrize(
    "net",
    [
        ByteTransformer(6, 8, 2, rngs=rngs()),
        ByteRNN(8, "lstm", rngs=rngs()),
        ByteRNN(8, "gru", rngs=rngs()),
    ],
    ids=["transformer", "lstm", "gru"],
)
def test_what_follows_a_byte_is_told_from_those_before_it(net):
    bytes_ = np.array([[1, 200, 3, 40, 5, 66]], np.uint8)
    logits = np.asarray(net(bytes_))
    assert logits.shape == (1, 6, 256)
    for i in range(6):
        changed = bytes_.copy()
        changed[0, i] += 1
        differs = np.any(np.abs(np.asarray(net(changed)) - logits) > 1e-7, axis=(0, 2))
        assert differs.tolist() == [j >= i for j in range(6)]


def test_a_byte_mlp_is_an_embedding_and_a_hidden_layer(key):
    net = ByteMLP(3, 8, rngs=rngs())
    rows = jax.random.randint(key, (4, 3), 0, 256)
    joined = jnp.concatenate([net.embedding[...][rows[:, i]] for i in range(3)], axis=1)
    np.testing.assert_allclose(
        net(rows), net.readout(jnp.tanh(net.hidden(joined))), rtol=1e-5, atol=1e-6
    )


def test_a_byte_rnn_is_flax_s_own(key):
    net = ByteRNN(4, "gru", rngs=rngs())
    text = jax.random.randint(key, (2, 5), 0, 256)
    hidden, found = jnp.zeros((2, 4)), []
    for i in range(5):
        hidden, _ = net.cell(hidden, net.embed(jax.nn.one_hot(text[:, i], 256)))
        found.append(net.head(hidden))
    np.testing.assert_allclose(net(text), jnp.stack(found, axis=1), rtol=1e-4, atol=1e-5)
