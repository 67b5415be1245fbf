"""Small networks: one for each variant of the spec, and random ones."""

import time
from dataclasses import replace

from hypothesis import strategies as st

from resnetkit.architecture import spec as s

_STAGES = (s.Stage(2, 8, s.Basic(8)), s.Stage(2, 16, s.Basic(16), s.FirstBlock(2)))
_BOTTLENECK_STAGES = (s.Stage(2, 16, s.Bottleneck(8)), s.Stage(2, 32, s.Bottleneck(16, 4), s.FirstBlock(2)))
_STEM = s.Stem((s.Conv(8, 3),), ())
BASE = s.Network(_STAGES, _STEM, s.Linear(5), (3, 16, 16))


def measure_cpu_budget():
    """Seconds of the processor that are few on this machine as it is now: one to two; its pace changes by half."""
    start, total = time.process_time(), 0
    for i in range(3_000_000):
        total += i * i
    return 10 * (time.process_time() - start)


def _make_stages(branch, channels=(8, 16), reduce=s.FirstBlock):
    return tuple(s.Stage(2, c, branch(c), reduce(1 if i == 0 else 2)) for i, c in enumerate(channels))


def make_atrous(spec, *stage_numbers):
    """The same network with these stages (from 1) turned a trous."""
    stages = [
        replace(stage, reduce=replace(stage.reduce, atrous=True)) if i in stage_numbers else stage
        for i, stage in enumerate(spec.stages, 1)
    ]
    return replace(spec, stages=tuple(stages))


_SUBSAMPLED = s.Shortcuts(s.Projection(), s.Subsampled(), s.Identity())
_V1_STAGES = tuple(replace(stage, branch=replace(stage.branch, stride_at=1)) for stage in _BOTTLENECK_STAGES)

TINY = {
    "basic-b": BASE,
    "basic-a": replace(BASE, shortcuts=s.OPTION_A),
    "basic-a-end": replace(BASE, shortcuts=s.OPTION_A_END),
    "basic-c": replace(BASE, shortcuts=s.OPTION_C),
    "basic-d": replace(BASE, shortcuts=s.OPTION_D),
    "plain": replace(BASE, shortcuts=s.NoShortcuts()),
    "bottleneck": replace(BASE, stages=_BOTTLENECK_STAGES),
    "bottleneck-v1": replace(BASE, stages=_V1_STAGES),
    "chain": replace(
        BASE, stages=_make_stages(lambda c: s.Chain((s.Step(2 * c, 1), s.Step(2 * c, 5, 2 * c), s.Step(c, 1)), 2))
    ),
    "subsampled": replace(BASE, stages=_make_stages(s.Basic, (8, 8)), shortcuts=_SUBSAMPLED),
    "subsampled-3": replace(
        BASE, stages=_make_stages(s.Basic, (8, 8)), shortcuts=replace(_SUBSAMPLED, smaller=s.Subsampled(3))
    ),
    "last-block": replace(BASE, stages=_make_stages(s.Basic, (8, 16), s.LastBlock), shortcuts=_SUBSAMPLED),
    "imagenet-stem": replace(BASE, stem=s.Stem((s.Conv(8, 7, 2),), (s.MaxPool(3, 2),)), input=(3, 33, 40)),
    "deep-stem": replace(BASE, stem=s.Stem((s.Conv(4, 3, 2), s.Conv(4), s.Conv(8)), (s.MaxPool(),)), input=(3, 32, 32)),
    "group-norm": replace(BASE, norm=s.GroupNorm(4)),
    "no-norm": replace(BASE, norm=s.NoNorm()),
    "silu-grey": replace(BASE, activation="silu", input=(1, 15, 17)),
    "pooled": replace(BASE, head=s.Pooled()),
    "headless": replace(BASE, head=s.NoHead()),
    "three-stages": replace(BASE, stages=(*_STAGES, s.Stage(1, 24, s.Basic(12), s.FirstBlock(3)))),
    "no-stem": replace(BASE, stem=s.Stem((), ())),
    "atrous": make_atrous(BASE, 2),
    "pre": replace(BASE, order="norm-act-conv"),
    "pre-bottleneck": replace(BASE, stages=_BOTTLENECK_STAGES, order="norm-act-conv", bias="never"),
    "pre-a": replace(BASE, order="norm-act-conv", shortcuts=s.OPTION_A),
    "pre-d": replace(BASE, order="norm-act-conv", shortcuts=s.OPTION_D, norm=s.GroupNorm(4)),
    "pre-plain": replace(BASE, order="norm-act-conv", shortcuts=s.NoShortcuts()),
    "pre-last-block": replace(
        BASE,
        stages=_make_stages(s.Bottleneck, (8, 16), s.LastBlock),
        order="norm-act-conv",
        shortcuts=_SUBSAMPLED,
        stem=s.Stem((s.Conv(8, 7, 2),), (s.MaxPool(3, 2, "zeros"),)),
        input=(3, 45, 40),
    ),
    "ceil-pool": replace(BASE, stem=s.Stem((s.Conv(8, 3),), (s.MaxPool(3, 2, "ceil"),)), input=(3, 31, 40)),
    "biases": replace(BASE, bias="always"),
    "attention": replace(BASE, stages=tuple(replace(stage, attention=(s.SqueezeExcite(4),)) for stage in _STAGES)),
    "channel-attention": replace(
        BASE, stages=tuple(replace(stage, attention=(s.EfficientChannels(),)) for stage in _BOTTLENECK_STAGES)
    ),
    "blurred": replace(
        BASE,
        stages=(_BOTTLENECK_STAGES[0], replace(_BOTTLENECK_STAGES[1], reduce=s.BlurredFirstBlock())),
        stem=s.Stem((s.Conv(8, 3),), (s.MaxPool(3, 1),), (s.Blur(),)),
        input=(3, 21, 24),
    ),
    "vgg": s.Network(
        tuple(s.Stage(n, c, s.Chain((s.Step(c),)), s.PoolAfter()) for n, c in ((1, 8), (2, 12))),
        s.Stem((), ()),
        s.MLP(5, (16, 12), 2),
        (3, 16, 18),
        s.NoShortcuts(),
        s.NoNorm(),
        bias="always",
    ),
    "stochastic": replace(BASE, stochastic_depth=0.5),
}

widths = st.sampled_from([4, 8, 12, 16])
branches = st.one_of(
    st.builds(s.Basic, widths),
    st.builds(s.Bottleneck, widths, st.sampled_from([1, 2, 4]), st.sampled_from([1, 2])),
)
reductions = st.builds(
    lambda reduction, stride, dilated: reduction(stride, dilated),
    st.sampled_from([s.FirstBlock, s.LastBlock, s.PoolAfter, s.BlurredFirstBlock]),
    st.integers(1, 3),
    st.booleans(),
)
attentions = st.sampled_from([(), (), (s.SqueezeExcite(),), (s.EfficientChannels(),)])
stages = st.builds(s.Stage, st.integers(1, 3), widths, branches, reductions, attentions)
adapters = st.sampled_from([s.Projection(), s.PooledProjection()])
shortcuts = st.one_of(
    st.just(s.NoShortcuts()),
    st.builds(
        s.Shortcuts,
        adapters,
        st.one_of(adapters, st.just(s.Subsampled(1)), st.just(s.Subsampled(3))),
        st.sampled_from([s.Identity(), s.Projection()]),
    ),
)
stems = st.sampled_from([_STEM, TINY["imagenet-stem"].stem, TINY["deep-stem"].stem, s.Stem((), ())])
unchecked_networks = st.builds(
    s.Network,
    st.lists(stages, min_size=1, max_size=3).map(tuple),
    stems,
    st.one_of(
        st.builds(s.Linear, st.integers(1, 7)),
        st.just(s.Pooled()),
        st.just(s.NoHead()),
        st.builds(s.MLP, st.integers(1, 7), st.just((5,)), st.integers(1, 3)),
    ),
    st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)),
    shortcuts,
    st.one_of(st.just(s.BatchNorm()), st.just(s.GroupNorm(4)), st.just(s.NoNorm())),
    st.sampled_from(["relu", "gelu", "hardswish"]),
    st.sampled_from(["conv-norm-act", "norm-act-conv"]),
    st.sampled_from(["without-norm", "always", "never"]),
)
# a norm before the first convolution is one over the channels of the image
networks = unchecked_networks.map(
    lambda n: (
        n if n.stem.convs or n.order == "conv-norm-act" or n.norm != s.GroupNorm(4) else replace(n, norm=s.NoNorm())
    )
)
