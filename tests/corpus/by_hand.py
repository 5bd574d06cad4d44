"""Networks as people write them: each shows a habit that a library must live with.

All take (n, 3, 16, 16) and give 10 logits, unless they say otherwise; none is a good classifier.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

CLASSES = 10


class Viewed(nn.Module):
    """Every tutorial's: conv, pool, `x.view(x.size(0), -1)`, functional ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc1, self.fc2 = nn.Linear(8 * 2 * 2, 24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        return self.fc2(F.relu(self.fc1(x)))


class Reshaped(nn.Module):
    """Reshapes with a number that it reads off another tensor, and scales by a norm of the
    shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = (
            nn.Conv2d(3, 8, 3, 2),
            nn.BatchNorm2d(8),
            nn.Linear(8 * 49, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = torch.relu(self.norm(self.conv(x)))
        return self.fc(x.reshape(n, -1)) / x.shape[1] ** 0.5


class Skipped(nn.Module):
    """Two residual blocks, with a batch norm in the shortcut and `+=`."""

    class Block(nn.Module):
        def __init__(self, before: int, maps: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = (
                nn.Conv2d(before, maps, 3, 2, 1, bias=False),
                nn.BatchNorm2d(maps),
            )
            self.conv2, self.bn2 = nn.Conv2d(maps, maps, 3, 1, 1, bias=False), nn.BatchNorm2d(maps)
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, maps, 1, 2, bias=False), nn.BatchNorm2d(maps)
            )
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            out = self.relu(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(out))
            out += self.shortcut(x)
            return self.relu(out)

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2, self.fc = (
            Skipped.Block(3, 8),
            Skipped.Block(8, 12),
            nn.Linear(12, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block2(self.block1(x)).mean((2, 3)))


class Shared(nn.Module):
    """One ReLU for all, and one conv-norm-relu that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.stem, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, CLASSES)
        self.twice = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), self.relu)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.twice(self.twice(x))
        return self.fc(self.relu(x - 0.2).mean((2, 3)))


class SharedNorm(nn.Module):
    """One batch norm behind two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.norm = (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.Conv2d(8, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
        )
        self.fc = nn.Linear(8 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv1(x)))
        x = F.relu(self.norm(self.conv2(x)))
        return self.fc(x.flatten(1))


class SharedConv(nn.Module):
    """One convolution before two batch norms, which makes a siamese pair of branches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.other = (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.BatchNorm2d(8),
        )
        self.fc = nn.Linear(8 * 64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(self.conv(x))) + F.relu(self.other(self.conv(x.flip(3))))
        return self.fc(x.flatten(1))


def _gated(x: Tensor) -> Tensor:
    return F.relu(x) * torch.sigmoid(x)


class Lambdas(nn.Module):
    """Functions as attributes, chosen by name: one of torch's and two of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 2), nn.Flatten(), nn.Linear(72, CLASSES)]
        )
        self.between = [F.relu, lambda x: F.relu(x, inplace=True), _gated, lambda x: x]

    def forward(self, x: Tensor) -> Tensor:
        for layer, act in zip(self.layers, self.between, strict=True):
            x = act(layer(x))
        return x


class Dense(nn.Module):
    """DenseNet's: norm, ReLU and conv on everything so far, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.transition = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(20, 10, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, 1, 1) for i in range(3))
        self.last, self.fc = nn.BatchNorm2d(10), nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            found.append(conv(F.relu(norm(torch.cat(found, 1)))))
        x = F.avg_pool2d(self.transition(torch.cat(found, 1)), 2)
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """Channels weighed by a hard sigmoid, spelt out as `relu6(x + 3) / 6`, and an h-swish."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.down, self.up, self.fc = (
            nn.Conv2d(8, 4, 1),
            nn.Conv2d(4, 8, 1),
            nn.Linear(8 * 16, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        x = x * F.relu6(x + 3) / 6
        scale = F.relu6(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))) + 3) / 6
        return self.fc(F.avg_pool2d(x * scale, 2).flatten(1))


class Attention(nn.Module):
    """Patches, `nn.MultiheadAttention`, LayerNorm, a class token and a ReLU between."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.place = nn.Parameter(torch.randn(1, 17, 16) * 0.5)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 16))
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        z = self.norm1(x)
        x = x + self.attend(z, z, z, need_weights=False)[0]
        x = x + self.mlp(self.norm2(x))
        return self.fc(x[:, 0])


class Encoder(nn.Module):
    """torch's own transformer layers, whose ReLUs hide in a fused kernel when in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder, self.fc = nn.TransformerEncoder(layer, 2), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.encoder(self.patches(x).flatten(2).mT).mean(1))


class GroupNormed(nn.Module):
    """GroupNorm after convs with standardised weights, computed in each forward pass."""

    class StandardConv(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            w = w / (w.std((1, 2, 3), keepdim=True) + 1e-5)
            return F.conv2d(x, w, self.bias, self.stride, self.padding)

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = (
            GroupNormed.StandardConv(3, 8, 3, 2),
            GroupNormed.StandardConv(8, 8, 3, 2),
        )
        self.norm1, self.norm2, self.fc = (
            nn.GroupNorm(4, 8),
            nn.GroupNorm(2, 8),
            nn.Linear(72, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.norm1(self.conv1(x)))
        return self.fc(F.relu_(self.norm2(self.conv2(x))).flatten(1))


class InstanceNormed(nn.Module):
    """InstanceNorm, with its running statistics and without."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, 2), nn.InstanceNorm2d(8, affine=True)
        self.conv2, self.norm2 = (
            nn.Conv2d(8, 8, 3, 1),
            nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        )
        self.fc = nn.Linear(8 * 25, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        return self.fc(F.relu(self.norm2(self.conv2(x))).flatten(1))


class LayerNormed(nn.Module):
    """ConvNeXt's: depthwise conv, LayerNorm with channels last, and a scale that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)
        self.scale = nn.Parameter(torch.rand(8))
        self.head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        z = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        z = self.scale * self.down(F.relu(self.up(z)))
        return self.head((x + z.permute(0, 3, 1, 2)).mean([-2, -1]))


class OldWeightNorm(nn.Module):
    """`torch.nn.utils.weight_norm`, a hook that computes the weight anew, before a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = weight_norm(nn.Conv2d(3, 8, 3, 2)), nn.BatchNorm2d(8)
        self.fc = weight_norm(nn.Linear(8 * 49, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(torch.relu_(self.norm(self.conv(x))), 1))


class NewWeightNorm(nn.Module):
    """The same by parametrization: the weight is a property of a class made for this conv."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = (
            parametrizations.weight_norm(nn.Conv2d(3, 8, 3, 2)),
            nn.BatchNorm2d(8),
        )
        self.fc = parametrizations.weight_norm(nn.Linear(8 * 49, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(F.relu(self.norm(self.conv(x))), 1))


class OldSpectralNorm(nn.Module):
    """`torch.nn.utils.spectral_norm`, whose hook also turns a power iteration in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = spectral_norm(nn.Conv2d(3, 8, 3, 2)), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 49, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).flatten(1))


class NewSpectralNorm(nn.Module):
    """The same by parametrization."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = (
            parametrizations.spectral_norm(nn.Conv2d(3, 8, 3, 2)),
            nn.BatchNorm2d(8),
        )
        self.fc = nn.Linear(8 * 49, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).flatten(1))


class TiedDecoder(nn.Module):
    """An encoder whose weight is its decoder's too; classified is the code and what the decoder
    misses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 4, 4, bias=False), nn.BatchNorm2d(8)
        self.decoder = nn.ConvTranspose2d(8, 3, 4, 4)
        self.decoder.weight = self.conv.weight
        self.fc = nn.Linear(8 * 16 + 3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(self.norm(self.conv(x)))
        missed = (self.decoder(code) - x).abs().mean((2, 3))
        return self.fc(torch.cat([code.flatten(1), missed], 1))


class TwoHeads(nn.Module):
    """Logits and an embedding, as a dict; `output="logits"` says which."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        self.classes, self.embedding = nn.Linear(8 * 49, CLASSES), nn.Linear(8 * 49, 16)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x)
        return {"embedding": F.normalize(self.embedding(x)), "logits": self.classes(x)}


class TokenNorm(nn.Module):
    """A batch norm after a linear layer on (n, tokens, features): it norms the TOKENS."""

    def __init__(self, tokens: int, features: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.mix, self.norm = nn.Linear(12, features), nn.BatchNorm1d(tokens)
        self.fc = nn.Linear(features, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.fc(F.relu(self.norm(self.mix(x))).mean(1))


class Conv1dInside(nn.Module):
    """Rows of the image as a sequence: Conv1d, BatchNorm1d and LSTM-like padding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv1d(48, 16, 3), nn.BatchNorm1d(16)
        self.conv2, self.norm2 = nn.Conv1d(16, 16, 3, dilation=2), nn.BatchNorm1d(16)
        self.fc = nn.Linear(16 * 10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x.flatten(1, 2))))
        return self.fc(F.relu(self.norm2(self.conv2(x))).flatten(1))


class Conv3dInside(nn.Module):
    """The channels as a depth of three: Conv3d and BatchNorm3d."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv3d(1, 6, (3, 3, 3), (1, 2, 2), (1, 1, 1)), nn.BatchNorm3d(6)
        self.conv2, self.norm2 = nn.Conv3d(6, 6, (3, 3, 3), (1, 2, 2)), nn.BatchNorm3d(6)
        self.fc = nn.Linear(6 * 9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x.unsqueeze(1))))
        return self.fc(F.relu(self.norm2(self.conv2(x))).flatten(1))


class InPlace(nn.Module):
    """Everything in place: ReLUs, `sub_`, `mul_`, `+=`, an assignment to a slice, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8)
        self.conv2, self.fc = nn.Conv2d(8, 8, 3), nn.Linear(8 * 25, CLASSES)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.3, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x.clone().sub_(0.5).mul_(4)))
        x[:, :2] = 0.5 * x[:, :2]
        x = self.conv2(self.relu(x))
        x += 0.1
        return self.fc(self.drop(F.relu_(x).flatten(1)))


class NormalisesItsInput(nn.Module):
    """Normalises the images that it is given in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = (
            nn.Conv2d(3, 8, 3, 2),
            nn.BatchNorm2d(8),
            nn.Linear(8 * 49, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.4).div_(0.3)
        return self.fc(F.relu(self.norm(self.conv(x))).flatten(1))


class Recurrent(nn.Module):
    """Rows read by an `nn.RNN` with ReLUs, which torch computes in one kernel, and a ReLU of its
    own."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.mlp = (
            nn.RNN(48, 16, nonlinearity="relu", batch_first=True),
            nn.Linear(16, 16),
        )
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x.permute(0, 2, 1, 3).flatten(2))
        return self.fc(F.relu(self.mlp(out[:, -1])))


class Gated(nn.Module):
    """Patches read by a GRU after a conv with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 12, 4, 4), nn.BatchNorm2d(12)
        self.gru, self.fc = (
            nn.GRU(12, 16, batch_first=True, bidirectional=True),
            nn.Linear(32, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        out, _ = self.gru(x.flatten(2).permute(0, 2, 1))
        return self.fc(out.mean(1))


class Dropouts(nn.Module):
    """Functional dropout with `self.training`, and dropout modules between layer and norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.norm = (
            nn.Conv2d(3, 8, 3, 2),
            nn.Dropout2d(0.2),
            nn.BatchNorm2d(8),
        )
        self.fc1, self.norm1, self.fc2 = (
            nn.Linear(8 * 49, 24),
            nn.BatchNorm1d(24),
            nn.Linear(24, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.drop(self.conv(x)))).flatten(1)
        x = F.relu(self.norm1(self.fc1(x)))
        return self.fc2(F.dropout(x, 0.5, self.training))


class Perceptron(nn.Module):
    """Linear, BatchNorm1d, ReLU, twice, on pixels that are flattened first."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Flatten(), nn.Linear(768, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU()),
            *(
                nn.Linear(32, 32),
                nn.BatchNorm1d(32, affine=False),
                nn.ReLU(),
                nn.Linear(32, CLASSES),
            ),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class PreActivated(nn.Module):
    """Norm, ReLU, conv: the norms have no layer of their own before them; the first norms the
    pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, 2, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 1, 1)
        self.norm3, self.fc = nn.BatchNorm2d(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.relu(self.norm1(x)))
        x = x + self.conv2(F.relu(self.norm2(x)))
        return self.fc(F.relu(self.norm3(x)).mean((2, 3)))


class Depthwise(nn.Module):
    """Depthwise and pointwise convs, ReLU6, reflected padding, a shuffle of channels, groups."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm0 = (
            nn.Conv2d(3, 12, 3, 2, 1, padding_mode="reflect", bias=False),
            nn.BatchNorm2d(12),
        )
        self.depthwise, self.norm1 = (
            nn.Conv2d(12, 24, 3, 2, 1, groups=12, bias=False),
            nn.BatchNorm2d(24),
        )
        self.pointwise, self.norm2 = nn.Conv2d(24, 8, 1, groups=4, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm0(self.up(x)))
        x = F.relu6(self.norm1(self.depthwise(x)))
        n, c, h, w = x.shape
        x = x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(self.norm2(self.pointwise(x)).flatten(1))


class Transposed(nn.Module):
    """Down and up again: a transposed conv with batch norm, upsampling, and U-Net's skip."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm1 = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.up, self.norm2 = nn.ConvTranspose2d(8, 4, 2, 2), nn.BatchNorm2d(4)
        self.last, self.fc = nn.Conv2d(12, 4, 3, 4, 1), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        low = F.relu(self.norm1(self.down(x)))
        high = F.relu(self.norm2(self.up(low)))
        both = torch.cat([high, F.interpolate(low, scale_factor=2, mode="nearest")], 1)
        return self.fc(F.relu(self.last(both)).flatten(1))


class Gates(nn.Module):
    """Branches weighed by learned scalars, a temperature, and the norm's own numbers read in
    forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.norm = (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.Conv2d(3, 8, 5, 2, 2),
            nn.BatchNorm2d(8),
        )
        self.gate, self.temperature = (
            nn.Parameter(torch.tensor(0.3)),
            nn.Parameter(torch.tensor([1.5])),
        )
        self.fc = nn.Linear(8 * 64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate)
        x = gate * self.norm(self.conv1(x)) + (1 - gate) * self.conv2(x) * self.norm.weight.view(
            1, -1, 1, 1
        )
        return self.fc(F.relu(x).flatten(1)) / self.temperature


class Branches(nn.Module):
    """A branch that depends on the data: bright batches take another way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8)
        self.bright, self.dark = nn.Linear(8 * 49, CLASSES), nn.Linear(8 * 49, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x))).flatten(1)
        return self.bright(x) if x.mean() > 1e6 else self.dark(x)


class Counts(nn.Module):
    """Keeps a counter, its last features and a list of shapes on itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = (
            nn.Conv2d(3, 8, 3, 2),
            nn.BatchNorm2d(8),
            nn.Linear(8 * 49, CLASSES),
        )
        self.calls, self.features, self.shapes = 0, None, []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.features = F.relu(self.norm(self.conv(x)))
        self.shapes.append(tuple(x.shape))
        return self.fc(self.features.flatten(1))


class HandWritten(nn.Module):
    """Activations without a name: torch.where, a product with a mask, and a maximum with zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc1 = (
            nn.Conv2d(3, 8, 3, 2),
            nn.Conv2d(8, 8, 3),
            nn.Linear(8 * 25, 24),
        )
        self.norm, self.fc2 = nn.BatchNorm2d(8), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv1(x))
        x = torch.where(x > 0, x, torch.zeros_like(x))
        x = self.conv2(x)
        x = x * (x > 0)
        x = self.fc1(x.flatten(1))
        return self.fc2(torch.maximum(x, torch.zeros_like(x)))


class Chunked(nn.Module):
    """Splits its channels, treats the halves differently, and joins them with einsum and
    as_strided."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.mix, self.fc = nn.Parameter(torch.randn(4, 4)), nn.Linear(8 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        one, other = F.relu(self.norm(self.conv(x))).chunk(2, 1)
        other = torch.einsum("nchw,cd->ndhw", other, self.mix)
        x = F.max_pool2d(torch.cat([one, other], 1), 2).contiguous()
        return self.fc(x.as_strided((x.shape[0], 128), (128, 1)))
