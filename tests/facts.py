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
_A = {
    20: (269_722, 40_551_040),
    32: (464_154, 68_862_592),
    44: (658_586, 97_174_144),
    56: (853_018, 125_485_696),
    110: (1_727_962, 252_887_680),
    1202: (19_421_274, 2_829_238_912),
}
_B = {20: (272_474, 40_813_184), 32: (466_906, None), 44: (661_338, None), 56: (855_770, None)}
_B |= {110: (1_730_714, None), 1202: (19_424_026, None)}
_C = {20: (283_962, None), 32: (489_594, None), 44: (695_226, None), 56: (900_858, None)}
_C |= {110: (1_826_202, None), 1202: (20_538_714, None)}
CIFAR = {
    **{f"resnet{depth}": counts for depth, counts in _A.items()},
    **{f"resnet{depth}_a_end": counts for depth, counts in _A.items()},
    **{f"plain{depth}": counts for depth, counts in _A.items() if depth < 1000},
    **{f"resnet{depth}_b": counts for depth, counts in _B.items()},
    **{f"resnet{depth}_c": counts for depth, counts in _C.items()},
    "cifar_resnet18": (11_173_962, 555_422_720),
    "cifar_resnet34": (21_282_122, None),
    "cifar_resnet50": (23_520_842, None),
    "cifar_resnet101": (42_512_970, None),
    "cifar_resnet152": (58_156_618, None),
}
CIFAR_100_A = {20: 275_572, 32: 470_004, 44: 664_436, 56: 858_868, 110: 1_733_812, 1202: 19_427_124}
# after stage 1 to 4 (torchvision's stride, then the paper's)
FIELDS = {
    "resnet18": (43, 99, 211, 435),
    "resnet34": (59, 179, 547, 899),
    "resnet50": (35, 91, 267, 427),
    "resnet50_v1": (35, 99, 291, 483),
}
LAST_FIELD = {"resnet101": 971, "resnet101_v1": 1027, "resnet152": 1451, "resnet152_v1": 1507}
BATCH_NORM_CHANNELS = {
    "resnet18": 4_800,
    "resnet34": 8_512,
    "resnet50": 26_560,
    "resnet101": 52_672,
    "resnet152": 75_712,
}
STATE_ENTRIES = {"resnet18": 122, "resnet34": 218, "resnet50": 320, "resnet101": 626, "resnet152": 932}
