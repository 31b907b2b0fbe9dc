# SPDX-License-Identifier: Apache-2.0
"""T2T-ViT against a slow twin in float64, written with loops from the paper and its repository.

The twin reads nothing but the tensors of the state dict: one image, one token, one head at a time.

Source:
    Yuan et al. 2021 (arXiv 2101.11986), sections 3.1 and 3.2; the order of keys, queries and
    values, the scales and the constants are those of yitu-opensource/T2T-ViT. The performer is
    that of Choromanski et al. 2020 (arXiv 2009.14794).
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pytest
import torch

from muntin.configs import from_dict, to_dict
from muntin.errors import ConfigError, ShapeError
from muntin.heads.classification_head import LinearHead
from muntin.heads.network import Network
from muntin.models.t2t_vit import T2TViT, T2TViTConfig
from muntin.weights.weight_loading import load_weights

TOLERANCE = 1e-5
NUM_CLASSES = 5
SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
FIRST = "tokens_to_token.attention1."

SMALL = T2TViTConfig(embed_dim=24, depth=2, num_heads=3, token_dim=8, img_size=(32, 48))
CONFIGS = {
    "performer": SMALL,
    "transformer": replace(SMALL, token_attention="transformer"),
    "performer, square": replace(SMALL, img_size=(48, 48), token_dim=10, mlp_ratio=2.0),
    "transformer, qkv bias": replace(
        SMALL, token_attention="transformer", qkv_bias=True, in_chans=2, num_heads=4
    ),
    "transformer, trained one token wide": replace(
        SMALL, token_attention="transformer", img_size=(48, 16)
    ),
}
# Not square, on its side, one token wide, odd, larger and odd, and as small as it goes.
SIZES = [(32, 48), (48, 32), (64, 16), (37, 50), (52, 61), (3, 5)]

both_kinds = pytest.mark.parametrize("kind", ["performer", "transformer"])


def perturb(model, seed=0):
    """Move every tensor, fixed ones too, away from where it starts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.7 * parameter.shape[1] ** -0.5 if parameter.ndim == 2 else 0.2
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def build(config, num_classes=NUM_CLASSES):
    body = T2TViT(config)
    return Network(body, LinearHead(body.embed_channels, num_classes))


def batch_images(size, batch=2, channels=3):
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(batch, channels, *size, generator=generator)


def distance(ours, theirs):
    """Largest difference, relative to the largest value of theirs."""
    assert ours.shape == theirs.shape
    return ((ours.double() - theirs.double()).abs().max() / theirs.abs().max()).item()


def values_and_gradients(run, images):
    """What `run` gives, and the gradient that a fixed mixture of each sends back to the pixels."""
    images = images.clone().requires_grad_()
    values, gradients = run(images), []
    for value in values:
        mixture = torch.linspace(-1.0, 1.7, value[0].numel(), dtype=value.dtype)
        mixed = (value * mixture.view(value[0].shape)).sum()
        gradients += torch.autograd.grad(mixed, images, retain_graph=True)
    return values, gradients


# The twin.


def linear(weights, name, x):
    return x @ weights[name + ".weight"].T + weights.get(name + ".bias", 0.0)


def norm(weights, name, x):
    centred = x - x.mean(-1, keepdim=True)
    spread = torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)
    return centred / spread * weights[name + ".weight"] + weights[name + ".bias"]


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def mlp(weights, first, second, x):
    return linear(weights, second, gelu(linear(weights, first, x)))


def pieces_along(side, split):
    kernel, stride, padding = split
    return (side + 2 * padding - kernel) // stride + 1


def grid_of(size):
    height, width = size
    for split in SPLITS:
        height, width = pieces_along(height, split), pieces_along(width, split)
    return height, width


@functools.cache
def places_of_pieces(channels, height, width, split):
    """Where each value of each piece lies in a flat C, H, W image; -1 is outside."""
    kernel, stride, padding = split
    places = []
    for top in range(pieces_along(height, split)):
        for left in range(pieces_along(width, split)):
            for channel in range(channels):
                for row in range(kernel):
                    for column in range(kernel):
                        y, x = top * stride - padding + row, left * stride - padding + column
                        inside = 0 <= y < height and 0 <= x < width
                        places.append((channel * height + y) * width + x if inside else -1)
    return torch.tensor(places)


def soft_split(image, split):
    """Overlapping pieces of a C, H, W image, rows first: number, C * kernel * kernel."""
    places = places_of_pieces(*image.shape, split)
    values = torch.cat([image.reshape(-1), image.new_zeros(1)])  # the last lies outside
    return values[places].view(-1, image.shape[0] * split[0] ** 2)


def as_image(tokens, height, width):
    image = [[tokens[y * width + x] for x in range(width)] for y in range(height)]
    return torch.stack([torch.stack(row) for row in image]).movedim(2, 0)


def softmax_mean(query, keys, values):
    """Mean of the values, weighted by the softmax of the scores."""
    scores = keys @ query
    chances = torch.exp(scores - scores.max())
    return chances @ values / chances.sum()


def random_features(w, x):
    return torch.exp(w @ x - x @ x / 2) / math.sqrt(len(w))


def performer(weights, name, tokens):
    size = len(weights[name + "proj.bias"])
    kqv = [linear(weights, name + "kqv", token) for token in norm(weights, name + "norm1", tokens)]
    keys = torch.stack([random_features(weights[name + "w"], x[:size]) for x in kqv])
    queries = [random_features(weights[name + "w"], x[size : 2 * size]) for x in kqv]
    values = torch.stack([x[2 * size :] for x in kqv])
    out = []
    for query, value in zip(queries, values, strict=True):
        likeness = keys @ query
        attended = likeness @ values / (likeness.sum() + 1e-8)
        out.append(value + linear(weights, name + "proj", attended))
    x = torch.stack(out)
    return x + mlp(weights, name + "mlp.0", name + "mlp.2", norm(weights, name + "norm2", x))


def transformer(weights, name, tokens):
    size = len(weights[name + "attn.proj.bias"])
    scale = tokens.shape[1] ** -0.5
    normed = norm(weights, name + "norm1", tokens)
    qkv = torch.stack([linear(weights, name + "attn.qkv", token) for token in normed])
    queries, keys, values = qkv[:, :size], qkv[:, size : 2 * size], qkv[:, 2 * size :]
    out = []
    for query, value in zip(queries, values, strict=True):
        attended = softmax_mean(query * scale, keys, values)
        out.append(value + linear(weights, name + "attn.proj", attended))
    x = torch.stack(out)
    return x + mlp(weights, name + "mlp.fc1", name + "mlp.fc2", norm(weights, name + "norm2", x))


def tokens_to_token(weights, image):
    for split, layer in zip(SPLITS, ("attention1.", "attention2."), strict=False):
        name = "tokens_to_token." + layer
        attend = performer if name + "w" in weights else transformer
        height, width = (pieces_along(side, split) for side in image.shape[1:])
        image = as_image(attend(weights, name, soft_split(image, split)), height, width)
    return linear(weights, "tokens_to_token.project", soft_split(image, SPLITS[2]))


def cubic(distance):
    """The kernel of bicubic resizing, with a = -0.75."""
    a, t = -0.75, abs(distance)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def taps(index, new, old):
    """(place, share) of the four old cells that a new cell is made of; the border repeats."""
    centre = (index + 0.5) * old / new - 0.5
    first = math.floor(centre) - 1
    return [(min(max(i, 0), old - 1), cubic(centre - i)) for i in range(first, first + 4)]


def positions(weights, trained, grid):
    stored = weights["pos_embed"][0]
    out = [stored[0]]
    for row in range(grid[0]):
        for column in range(grid[1]):
            cell = torch.zeros_like(stored[0])
            for y, of_y in taps(row, grid[0], trained[0]):
                for x, of_x in taps(column, grid[1], trained[1]):
                    cell = cell + of_y * of_x * stored[1 + y * trained[1] + x]
            out.append(cell)
    return torch.stack(out)


def self_attention(weights, name, x, num_heads):
    width = x.shape[1]
    size = width // num_heads
    qkv = linear(weights, name + "qkv", x)
    out = []
    for token in qkv:
        heads = []
        for head in range(num_heads):
            at = [
                slice(part * width + head * size, part * width + (head + 1) * size)
                for part in range(3)
            ]
            heads.append(softmax_mean(token[at[0]] * size**-0.5, qkv[:, at[1]], qkv[:, at[2]]))
        out.append(linear(weights, name + "proj", torch.cat(heads)))
    return torch.stack(out)


def block(weights, name, x, num_heads):
    x = x + self_attention(weights, name + "attn.", norm(weights, name + "norm1", x), num_heads)
    return x + mlp(weights, name + "mlp.fc1", name + "mlp.fc2", norm(weights, name + "norm2", x))


def twin_tokens(weights, config, image):
    """Class token and patch tokens after the last normalisation."""
    x = torch.cat([weights["cls_token"][0], tokens_to_token(weights, image)])
    x = x + positions(weights, grid_of(config.img_size), grid_of(image.shape[1:]))
    for index in range(config.depth):
        x = block(weights, f"blocks.{index}.", x, config.num_heads)
    return norm(weights, "norm", x)


def twin(network):
    """The network's twin: from images in float64 to logits, pooled vector and map."""
    state = network.state_dict()
    weights = {name.removeprefix("backbone."): x.double() for name, x in state.items()}
    config = network.backbone.config

    def run(images):
        tokens = torch.stack([twin_tokens(weights, config, image) for image in images])
        grid = grid_of(images.shape[2:])
        maps = torch.stack([as_image(each[1:], *grid) for each in tokens])
        return linear(weights, "head.fc", tokens[:, 0]), tokens[:, 0], maps

    return run


def ours(network):
    """The same three of the network itself."""
    body = network.backbone
    return lambda images: (network(images), body.embed(images), body(images)[-1])


# What is shown.


# Every size in both kinds; one size that fits nothing in the others.
TWINS = [
    pytest.param(name, size, marks=[] if ", " not in name or size == (37, 50) else pytest.mark.slow)
    for name in CONFIGS
    for size in SIZES
]


@pytest.mark.parametrize(("name", "size"), TWINS)
def test_values_and_input_gradients_equal_the_twin(name, size):
    network = perturb(build(CONFIGS[name]))
    images = batch_images(size, channels=CONFIGS[name].in_chans)
    values, gradients = values_and_gradients(ours(network), images)
    their_values, their_gradients = values_and_gradients(twin(network), images.double())
    for value, their_value in zip(values, their_values, strict=True):
        assert value.dtype == torch.float32
        assert distance(value, their_value) < TOLERANCE
    for gradient, their_gradient in zip(gradients, their_gradients, strict=True):
        assert distance(gradient, their_gradient) < TOLERANCE


@both_kinds
def test_the_model_as_it_starts_equals_the_twin(kind):
    network = build(CONFIGS[kind]).eval()
    images = batch_images((37, 50))
    with torch.no_grad():
        expected = twin(network)(images.double())
        for value, their_value in zip(ours(network)(images), expected, strict=True):
            assert distance(value, their_value) < TOLERANCE


def test_the_epsilon_of_the_performer_is_that_of_the_twin():
    network = perturb(build(SMALL))
    front = network.backbone.tokens_to_token
    with torch.no_grad():
        for layer in (front.attention1, front.attention2):
            # Long keys and queries: the sums that are divided by nearly vanish.
            layer.kqv.weight[: 2 * SMALL.token_dim] *= 3
        images = batch_images((32, 48))
        expected = twin(network)(images.double())
        for value, their_value in zip(ours(network)(images), expected, strict=True):
            assert distance(value, their_value) < TOLERANCE


@pytest.mark.parametrize(("embed_dim", "num_heads"), [(24, 3), (64, 1), (18, 2), (10, 2)])
def test_positions_start_as_sinusoids(embed_dim, num_heads):
    config = replace(SMALL, embed_dim=embed_dim, num_heads=num_heads, img_size=(224, 224))
    stored = T2TViT(config).pos_embed[0]
    assert stored.shape == (197, embed_dim)
    for position in (0, 1, 2, 17, 98, 196):
        for j in range(embed_dim):
            angle = position / 10000 ** (2 * (j // 2) / embed_dim)
            expected = math.cos(angle) if j % 2 else math.sin(angle)
            assert stored[position, j].item() == pytest.approx(expected, abs=1e-6)


@both_kinds
def test_only_positions_and_random_features_are_fixed_and_all_are_stored(kind):
    body = T2TViT(CONFIGS[kind])
    fixed = {name for name, parameter in body.named_parameters() if not parameter.requires_grad}
    layers = ("attention1", "attention2") if kind == "performer" else ()
    assert fixed == {"pos_embed", *(f"tokens_to_token.{layer}.w" for layer in layers)}
    assert fixed <= body.state_dict().keys()


@pytest.mark.parametrize("token_dim", [8, 9, 64])
def test_random_features_start_orthogonal_and_scaled(token_dim):
    front = T2TViT(replace(SMALL, token_dim=token_dim)).tokens_to_token
    count = token_dim // 2
    for layer in (front.attention1, front.attention2):
        assert layer.w.shape == (count, token_dim)
        torch.testing.assert_close(layer.w @ layer.w.T, count * torch.eye(count))
    assert not torch.equal(front.attention1.w, front.attention2.w)


def swap_first_two_thirds(state, name):
    """Rows of k, q, v (or q, k, v) with the first two exchanged."""
    for key in [key for key in state if key.startswith(name + ".")]:
        first, second, third = state[key].chunk(3)
        state[key] = torch.cat([second, first, third])


def reorder_pieces(state, name, order):
    """Columns c, row, column of a 7 x 7 piece in another order."""
    columns = torch.arange(3 * 49).view(3, 7, 7).permute(order).reshape(-1)
    layer = FIRST + name + ".weight"
    state[layer] = state[layer][:, columns]
    for key in (FIRST + "norm1.weight", FIRST + "norm1.bias"):
        state[key] = state[key][columns]


def rotate_thirds(state, name):
    for key in [key for key in state if key.startswith(name + ".")]:
        state[key] = torch.cat(state[key].chunk(3)[-1:] + state[key].chunk(3)[:-1])


MISTAKES = {
    "first two swapped": lambda state, name: swap_first_two_thirds(state, FIRST + name),
    "values first": lambda state, name: rotate_thirds(state, FIRST + name),
    "channel last": lambda state, name: reorder_pieces(state, name, (1, 2, 0)),
    "columns before rows": lambda state, name: reorder_pieces(state, name, (0, 2, 1)),
}


@both_kinds
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_order_would_be_seen(kind, mistake):
    body = perturb(T2TViT(CONFIGS[kind]))
    wrong = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    MISTAKES[mistake](wrong, "kqv" if kind == "performer" else "attn.qkv")
    other = T2TViT(CONFIGS[kind]).eval()
    other.load_state_dict(wrong)
    images = batch_images((32, 48))
    with torch.no_grad():
        assert distance(other.embed(images), body.embed(images)) > 100 * TOLERANCE


@both_kinds
def test_every_tensor_moves_the_logits(kind):
    network = perturb(build(CONFIGS[kind]))
    images = batch_images((64, 32), batch=1)
    with torch.no_grad():
        before = network(images)
        for name, tensor in network.state_dict().items():
            kept = tensor.clone()
            tensor += 0.5 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
            assert distance(network(images), before) > TOLERANCE, name
            tensor.copy_(kept)


@both_kinds
@pytest.mark.parametrize("size", SIZES)
def test_an_image_alone_and_in_a_batch_agree(kind, size):
    network = perturb(build(CONFIGS[kind]))
    images = batch_images(size)
    with torch.no_grad():
        together = network(images)
        alone = torch.cat([network(image[None]) for image in images])
    assert distance(alone, together) < TOLERANCE


@both_kinds
@pytest.mark.parametrize("size", [(2, 32), (32, 2), (1, 1), (2, 2), (0, 32)])
def test_sides_shorter_than_three_pixels_are_refused(kind, size):
    body = T2TViT(CONFIGS[kind]).eval()
    for run in (body, body.embed):
        with pytest.raises(ShapeError, match=r"\b3\b"):
            run(torch.zeros(1, 3, *size))


@pytest.mark.parametrize(
    "changes",
    [
        {"embed_dim": 25},
        {"embed_dim": 0},
        {"depth": 0},
        {"num_heads": 0},
        {"num_heads": 5},
        {"token_dim": 0},
        {"token_dim": 1},
        {"img_size": (2, 32)},
        {"img_size": (32, 0)},
        {"in_chans": 0},
        {"drop_path_rate": 1.0},
        {"out_indices": (2,)},
        {"out_indices": ()},
        {"out_indices": (1, 0)},
        {"out_indices": (0,), "out_norm": "last"},
    ],
    ids=str,
)
def test_wrong_configs_are_refused(changes):
    with pytest.raises(ConfigError):
        T2TViT(replace(SMALL, **changes))


@pytest.mark.parametrize(
    "changes",
    [{"token_attention": "performers"}, {"out_norm": "first"}, {"token_dims": 8}],
    ids=str,
)
def test_wrong_choices_in_a_stored_config_are_refused(changes):
    with pytest.raises(ConfigError):
        from_dict(T2TViTConfig, {**to_dict(SMALL), **changes})


def as_repository(network):
    """The names of yitu-opensource/T2T-ViT."""
    names = {
        name.removeprefix("backbone.").replace("head.fc.", "head."): tensor.clone()
        for name, tensor in network.state_dict().items()
    }
    assert {"cls_token", "pos_embed", "norm.weight", "head.weight", "head.bias"} <= names.keys()
    assert {"tokens_to_token.project.weight", "blocks.1.attn.qkv.weight"} <= names.keys()
    return {"module." + name: tensor for name, tensor in names.items()}


@both_kinds
@pytest.mark.parametrize("nested", ["state_dict_ema", "state_dict"])
def test_the_repositorys_checkpoints_load(kind, nested):
    network = perturb(build(CONFIGS[kind]))
    other = perturb(build(CONFIGS[kind]), seed=1)
    report = load_weights(other, {nested: as_repository(network)})
    assert (report.reset, report.ignored, report.resized) == ((), (), ())
    for name, tensor in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    images = batch_images((37, 50))
    with torch.no_grad():
        assert torch.equal(other(images), network(images))
        assert distance(other(images), twin(network)(images.double())[0]) < TOLERANCE


@both_kinds
def test_averaged_weights_come_before_the_last_ones(kind):
    averaged, last = (perturb(build(CONFIGS[kind]), seed=seed) for seed in (1, 2))
    other = build(CONFIGS[kind])
    load_weights(
        other, {"state_dict": as_repository(last), "state_dict_ema": as_repository(averaged)}
    )
    for name, tensor in averaged.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
