"""Published and closed-form numbers: (params, MACs or None). Sources: torchvision's metadata and the papers' tables."""

IMAGENET = {
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet34": (21_797_672, 3_663_761_408),
    "resnet50": (25_557_032, 4_089_184_256),
    "resnet101": (44_549_160, 7_801_405_440),
    "resnet152": (60_192_808, 11_513_626_624),
    "resnext50_32x4d": (25_028_904, 4_230_479_872),
    "resnext101_32x8d": (88_791_336, 16_414_015_488),
    "resnext101_64x4d": (83_455_272, 15_460_270_080),
    "wide_resnet50_2": (68_883_240, 11_398_021_120),
    "wide_resnet101_2": (126_886_696, 22_753_050_624),
    "resnet50_v1": (25_557_032, 3_857_973_248),
    "resnet101_v1": (44_549_160, 7_570_194_432),
    "resnet152_v1": (60_192_808, 11_282_415_616),
    "resnet18_a": (11_515_688, 1_794_805_760),
    "plain18": (11_515_688, 1_794_805_760),
    "resnet18_c": (12_043_816, 1_878_298_624),
    "resnet34_a": (21_623_848, 3_644_493_824),
    "plain34": (21_623_848, 3_644_493_824),
    "resnet34_c": (22_716_840, 3_830_747_136),
}
_OPTION_A = {
    20: (269_722, 40_551_040),
    32: (464_154, 68_862_592),
    44: (658_586, 97_174_144),
    56: (853_018, 125_485_696),
    110: (1_727_962, 252_887_680),
    1202: (19_421_274, 2_829_238_912),
}
_OPTION_B = {20: (272_474, 40_813_184), 32: (466_906, None), 44: (661_338, None), 56: (855_770, None)}
_OPTION_B |= {110: (1_730_714, None), 1202: (19_424_026, None)}
_OPTION_C = {20: (283_962, None), 32: (489_594, None), 44: (695_226, None), 56: (900_858, None)}
_OPTION_C |= {110: (1_826_202, None), 1202: (20_538_714, None)}
CIFAR = {
    **{f"resnet{depth}": counts for depth, counts in _OPTION_A.items()},
    **{f"resnet{depth}_a_end": counts for depth, counts in _OPTION_A.items()},
    **{f"plain{depth}": counts for depth, counts in _OPTION_A.items() if depth < 1000},
    **{f"resnet{depth}_b": counts for depth, counts in _OPTION_B.items()},
    **{f"resnet{depth}_c": counts for depth, counts in _OPTION_C.items()},
    "cifar_resnet18": (11_173_962, 555_422_720),
    "cifar_resnet34": (21_282_122, None),
    "cifar_resnet50": (23_520_842, None),
    "cifar_resnet101": (42_512_970, None),
    "cifar_resnet152": (58_156_618, None),
}
CIFAR_100_A = {20: 275_572, 32: 470_004, 44: 664_436, 56: 858_868, 110: 1_733_812, 1202: 19_427_124}
# after stage 1 to 4 (torchvision's stride, then the paper's)
RECEPTIVE_FIELDS = {
    "resnet18": (43, 99, 211, 435),
    "resnet34": (59, 179, 547, 899),
    "resnet50": (35, 91, 267, 427),
    "resnet50_v1": (35, 99, 291, 483),
}
LAST_RECEPTIVE_FIELD = {"resnet101": 971, "resnet101_v1": 1027, "resnet152": 1451, "resnet152_v1": 1507}
BATCH_NORM_CHANNELS = {
    "resnet18": 4_800,
    "resnet34": 8_512,
    "resnet50": 26_560,
    "resnet101": 52_672,
    "resnet152": 75_712,
}
STATE_ENTRIES = {"resnet18": 122, "resnet34": 218, "resnet50": 320, "resnet101": 626, "resnet152": 932}

# timm's results tables and closed forms that agree with them; VGG by torchvision; Keras without moving statistics
FAMILY_PARAMS = {
    "resnet10t": 5_435_488, "resnet14t": 10_081_632, "resnet18d": 11_708_744, "resnet34d": 21_816_904,
    "resnet26": 15_995_176, "resnet26d": 16_014_408, "resnet26t": 16_011_872, "resnet50c": 25_576_264,
    "resnet50d": 25_576_264, "resnet50s": 25_680_808, "resnet50t": 25_573_728, "resnet101d": 44_568_392,
    "resnet152d": 60_212_040, "resnet200": 64_673_832, "vgg11": 132_863_336, "vgg13": 133_047_848,
    "vgg16": 138_357_544, "vgg19": 143_667_240, "vgg11_bn": 132_868_840, "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992, "vgg19_bn": 143_678_248, "keras_resnet50": 25_583_592, "resnetblur50": 25_557_032,
    "resnetblur18": 11_689_512, "resnetblur50d": 25_576_264, "resnetblur101d": 44_568_392, "resnetaa34d": 21_816_904,
    "resnetaa50": 25_557_032, "resnetaa50d": 25_576_264, "resnetaa101d": 44_568_392,
    "caffe_resnet50": 25_557_032, "caffe_resnet101": 44_549_160, "caffe_resnet152": 60_192_808,
}  # fmt: skip
FAMILY_MACS = {
    "resnet26": 2_342_256_640, "resnet200": 15_007_481_856, "vgg16": 15_470_264_320, "vgg19": 19_632_062_464,
    "keras_resnet50": 3_857_973_248, "keras_resnet101": 7_570_194_432, "keras_resnet152": 11_282_415_616,
    "caffe_resnet50": 3_857_973_248,
}  # fmt: skip
# what Keras prints, moving statistics included (keras.io, Applications)
KERAS_TOTALS = {
    "keras_resnet50": 25_636_712, "keras_resnet101": 44_707_176, "keras_resnet152": 60_419_944,
    "keras_resnet50v2": 25_613_800, "keras_resnet101v2": 44_675_560, "keras_resnet152v2": 60_380_648,
}  # fmt: skip
