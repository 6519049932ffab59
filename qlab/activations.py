"""Bytes that the decoder's forward pass leaves behind for its backward pass, tensor by tensor, by arithmetic.

Each term is one saved tensor of `qlab.model.Decoder`; the sum is compared with `qlab.measure` in the tests.
"""

from dataclasses import dataclass

from qlab.config import ModelConfig

INDEX_BYTES = 8  # int64 tokens and targets
FP32_BYTES = 4


@dataclass(frozen=True)
class Precision:
    """The bytes of a value between the layers and weights, and of one in a matrix product; norms work in FP32."""

    name: str
    stream_bytes: int
    matmul_bytes: int

    @property
    def casts(self) -> bool:
        """Whether autocast copies inputs and weights to a narrower type in front of each product."""
        return self.matmul_bytes < self.stream_bytes


FP32 = Precision("fp32", 4, 4)
BF16_AUTOCAST = Precision("bf16-autocast", 4, 2)  # weights and stream in FP32
BF16 = Precision("bf16", 2, 2)  # `decoder.bfloat16()`: weights and stream in BF16


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training step's load: how much text, in which precision, with layers recomputed or kept.

    Units:   `score_bytes` is what a layer's attention saves for each head, query and key: 0 for a fused kernel, 4 for
             matrix products in FP32; under BF16 autocast 2 on a CPU and 6 on CUDA, which keeps the softmax in FP32.
    Errors:  ValueError if `batch` or `sequence` is below 1, or `score_bytes` is negative.
    """

    batch: int
    sequence: int
    precision: Precision = FP32
    checkpointed: bool = False
    score_bytes: int = 0

    def __post_init__(self):
        for name, least in (("batch", 1), ("sequence", 1), ("score_bytes", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    @property
    def tokens(self) -> int:
        """Tokens in the batch."""
        return self.batch * self.sequence


@dataclass(frozen=True)
class ActivationBytes:
    """What the forward pass saves: in the layers, around them, and as narrow copies of the weights."""

    layers: int
    around: int
    weight_copies: int
    recomputed_layer: int  # what one checkpointed layer saves again while it is differentiated

    @property
    def total(self) -> int:
        """Bytes saved when the forward pass ends."""
        return self.layers + self.around + self.weight_copies


def activation_bytes(config: ModelConfig, run: Run) -> ActivationBytes:
    """Predict the bytes saved for backward by `Decoder` and `bits_per_token(...).mean()`, parameters left out.

    Errors:  ValueError if the run's sequence is longer than the config's.
    """
    if run.sequence > config.sequence:
        raise ValueError(f"sequence must be at most the model's {config.sequence}, got {run.sequence}")
    stream = stream_bytes(config, run)
    layer = layer_bytes(config, run)
    copies = layer_copy_bytes(config) if run.precision.casts else 0
    head_copy = run.precision.matmul_bytes * config.width * config.vocabulary if run.precision.casts else 0
    input_is_saved = config.norm == "layernorm" or run.precision.stream_bytes == FP32_BYTES  # else its FP32 copy is
    again = layer + copies - (stream if input_is_saved else 0)
    return ActivationBytes(
        layers=config.layers * (stream if run.checkpointed else layer),
        around=around_bytes(config, run),
        weight_copies=head_copy + (0 if run.checkpointed else config.layers * copies),
        recomputed_layer=again if run.checkpointed else 0,
    )


def stream_bytes(config: ModelConfig, run: Run) -> int:
    """Size what one layer hands to the next: all that is kept of a checkpointed layer."""
    return run.precision.stream_bytes * config.width * run.tokens


def layer_bytes(config: ModelConfig, run: Run) -> int:
    """Sum what one layer saves: two norms, attention with its rotary table, feed-forward."""
    narrow, tokens = run.precision.matmul_bytes, run.tokens
    q_k_v_out = 4 * narrow * config.width * tokens  # the output is also the input of the last product: one storage
    log_sum_exp = FP32_BYTES * config.heads * tokens
    scores = run.score_bytes * config.heads * run.sequence * tokens
    inside = 4 if config.gated else 2  # gate, its SiLU, up and their product; or up and its GELU
    ffn = inside * narrow * config.ffn_width * tokens
    norms = norm_bytes(config, run, readers=3) + norm_bytes(config, run, readers=1 + config.gated)
    return norms + q_k_v_out + (scores or log_sum_exp) + ffn + rotary_table_bytes(config, run)


def norm_bytes(config: ModelConfig, run: Run, *, readers: int) -> int:
    """Sum what a norm saves, and its output as its `readers` save it: once, or a narrow copy for each of them."""
    values = config.width * run.tokens
    rms = config.norm == "rmsnorm"
    own = 2 * FP32_BYTES * values if rms else stream_bytes(config, run)  # input and normalized; LayerNorm its input
    per_token = FP32_BYTES * (1 if rms else 2)  # 1 / rms; mean and 1 / deviation
    copies = readers * run.precision.matmul_bytes * values
    return own + per_token * run.tokens + (copies if run.precision.casts else stream_bytes(config, run))


def around_bytes(config: ModelConfig, run: Run) -> int:
    """Sum what is saved outside the layers: indices, the last norm, the log-probabilities."""
    positions = INDEX_BYTES * run.sequence if config.positions == "learned" else 0
    tokens_and_targets = 2 * INDEX_BYTES * run.tokens
    log_probabilities = FP32_BYTES * config.vocabulary * run.tokens
    loss_weight = FP32_BYTES  # the one number that the mean divides by
    return positions + tokens_and_targets + norm_bytes(config, run, readers=1) + log_probabilities + loss_weight


def rotary_table_bytes(config: ModelConfig, run: Run) -> int:
    """Size one layer's table of cosines and sines, saved whole however short the batch's sequence."""
    return run.precision.stream_bytes * config.sequence * config.head_width if config.positions == "rotary" else 0


def layer_copy_bytes(config: ModelConfig) -> int:
    """Size the 16-bit copies of one layer's matrices that autocast makes and autograd keeps."""
    attention = 2 * config.width * (config.width + config.kv_width)
    return 2 * (attention + (2 + config.gated) * config.width * config.ffn_width)
