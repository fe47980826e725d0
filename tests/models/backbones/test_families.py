"""Every family of architectures that the lectures teach, and later ones, under the contract of all backbones.

The widths are those of the papers' tables; where the network was narrowed or widened, of the authors' rule for it.
"""

import pytest
from contracts import BackboneContract, ExportContract


class TestFamilies(BackboneContract):
    """Small ones, for every run."""

    widths = {  # noqa: RUF012
        "torchvision/shufflenet_v2_x0_5": 1024,  # Ma et al. 2018, table 5
        "torchvision/googlenet": 1024,  # Szegedy et al. 2015, table 1; its auxiliary classifiers are left out
        "mobilenetv2_035": 1280,  # Sandler et al. 2018, table 2, at width 0.35
        "deit_tiny_distilled_patch16_224": 192,  # Touvron et al. 2021, table 1; two heads, of which none is left
    }
    maps = {  # noqa: RUF012
        "torchvision/shufflenet_v2_x0_5": (24, 48, 96, 1024),
        "torchvision/googlenet": (64, 192, 480, 832, 1024),
        "mobilenetv2_035": (8, 8, 16, 32, 1280),
        "deit_tiny_distilled_patch16_224": (192,),
    }


@pytest.mark.slow
class TestAllFamilies(BackboneContract):
    """The rest, at small pictures; large ones as they are."""

    sides = {  # noqa: RUF012
        "vgg16": 32,
        "vgg16_bn": 32,
        "vgg19": 32,
        "vgg19_bn": 32,
        # Without padding, Inceptions need about 75 pixels.
        **dict.fromkeys(("inception_v3", "inception_v4", "inception_resnet_v2", "torchvision/inception_v3"), 96),
        "legacy_xception": 96,
        "vit_small_patch14_dinov2": 56,
        "eva02_tiny_patch14_224": 56,
        "torchvision/maxvit_t": 224,  # its windows divide no smaller picture
    }
    widths = {  # noqa: RUF012
        "torchvision/alexnet": 4096,  # Krizhevsky 2014
        "vgg16": 4096,  # Simonyan and Zisserman 2015, table 1
        "vgg16_bn": 4096,
        "vgg19": 4096,
        "vgg19_bn": 4096,
        "inception_v3": 2048,  # Szegedy et al. 2016, table 1
        "torchvision/inception_v3": 2048,
        "inception_v4": 1536,  # Szegedy et al. 2017, figures 9 and 15
        "inception_resnet_v2": 1536,
        "resnet18": 512,  # He et al. 2016, table 1
        "resnet34": 512,
        "resnet50": 2048,
        "resnet152": 2048,
        "resnetv2_50": 2048,  # He et al. 2016b: pre-activation
        "resnext50_32x4d": 2048,  # Xie et al. 2017, table 1
        "densenet121": 1024,  # Huang et al. 2017, table 1
        "densenet201": 1920,
        "torchvision/squeezenet1_0": 512,  # Iandola et al. 2016, table 1
        "legacy_seresnet18": 512,  # Hu et al. 2018
        "legacy_senet154": 2048,
        "mobilenetv1_100": 1024,  # Howard et al. 2017, table 1
        "mobilenetv3_large_100": 1280,  # Howard et al. 2019, table 1
        "mobilenetv4_conv_small": 1280,  # Qin et al. 2024
        "torchvision/shufflenet_v2_x1_0": 1024,
        "legacy_xception": 2048,  # Chollet 2017, figure 5
        "xception41": 2048,
        "nasnetalarge": 4032,  # Zoph et al. 2018: 6 @ 4032
        "pnasnet5large": 4320,  # Liu et al. 2018
        "mnasnet_100": 1280,  # Tan et al. 2019, figure 7
        "efficientnet_b0": 1280,  # Tan and Le 2019, table 1
        "efficientnet_b3": 1536,  # at width 1.2
        "efficientnet_b7": 2560,  # at width 2.0
        "tf_efficientnetv2_b0": 1280,  # Tan and Le 2021
        "regnety_002": 368,  # Radosavovic et al. 2020
        "resnest14d": 2048,  # Zhang et al. 2020
        "convnext_atto": 320,
        "convnextv2_atto": 320,
        "vit_tiny_patch16_224": 192,
        "swin_tiny_patch4_window7_224": 768,  # Liu et al. 2021, section 3.3
        "vit_small_patch14_dinov2": 384,
        "vit_small_patch16_dinov3": 384,
        "maxvit_rmlp_pico_rw_256": 256,
        "torchvision/maxvit_t": 512,  # Tu et al. 2022, table 1
        "eva02_tiny_patch14_224": 192,
        "mobileone_s0": 1024,  # Vasu et al. 2023, table 2
        "fastvit_t8": 768,
        "levit_128s": 384,  # Graham et al. 2021, table 2
        "mixer_s32_224": 512,  # Tolstikhin et al. 2021, table 1
        "caformer_s18": 512,
    }
    maps = {  # noqa: RUF012
        "torchvision/alexnet": (64, 192, 256, 256),
        "vgg16": (64, 128, 256, 512, 512, 512),
        "vgg19_bn": (64, 128, 256, 512, 512, 512),
        "inception_v3": (64, 80, 192, 288, 768, 2048),
        "torchvision/inception_v3": (64, 80, 192, 288, 768, 2048),
        "inception_v4": (64, 160, 192, 384, 1024, 1536),
        "inception_resnet_v2": (64, 80, 192, 320, 1088, 1536),
        "resnet18": (64, 64, 128, 256, 512),
        "resnet152": (64, 256, 512, 1024, 2048),
        "resnetv2_50": (64, 256, 512, 1024, 2048),
        "resnext50_32x4d": (64, 256, 512, 1024, 2048),
        "densenet121": (64, 256, 512, 1024, 1024),
        "densenet201": (64, 256, 512, 1792, 1920),
        "torchvision/squeezenet1_0": (96, 256, 512, 512),
        "legacy_seresnet18": (64, 64, 128, 256, 512),
        "legacy_senet154": (128, 256, 512, 1024, 2048),
        "mobilenetv1_100": (64, 128, 256, 512, 1024),
        "mobilenetv3_large_100": (16, 24, 40, 112, 960),
        "torchvision/shufflenet_v2_x1_0": (24, 116, 232, 1024),
        "legacy_xception": (64, 128, 256, 728, 2048),
        "nasnetalarge": (96, 168, 1008, 2016, 4032),
        "pnasnet5large": (96, 270, 1080, 2160, 4320),
        "mnasnet_100": (16, 24, 40, 96, 320),
        "efficientnet_b0": (16, 24, 40, 112, 320),
        "efficientnet_b7": (32, 48, 80, 224, 640),
        "tf_efficientnetv2_b0": (16, 32, 48, 112, 192),
        "regnety_002": (32, 24, 56, 152, 368),
        "convnext_atto": (40, 80, 160, 320),
        "swin_tiny_patch4_window7_224": (96, 192, 384, 768),
        "torchvision/maxvit_t": (64, 64, 128, 256, 512),
        "vit_tiny_patch16_224": (192,),
        "vit_small_patch14_dinov2": (384,),
        "mobileone_s0": (48, 48, 128, 256, 1024),
        "levit_128s": (16, 32, 64, 128, 256, 384),
        "mixer_s32_224": (512,),
    }


@pytest.mark.slow
class TestExport(ExportContract):
    sides = {"deit_tiny_distilled_patch16_224": 64}  # noqa: RUF012


@pytest.mark.slow
class TestAllExports(ExportContract):
    """One of each family: those of a family are exported alike."""

    sides = {  # noqa: RUF012
        **dict.fromkeys(("torchvision/shufflenet_v2_x0_5", "torchvision/googlenet", "torchvision/alexnet"), 64),
        **dict.fromkeys(("inception_v3", "inception_v4", "inception_resnet_v2", "legacy_xception"), 96),
        **dict.fromkeys(("vgg16_bn", "resnet18", "resnetv2_50", "resnext50_32x4d", "densenet121"), 64),
        **dict.fromkeys(("torchvision/squeezenet1_0", "legacy_seresnet18", "mobilenetv1_100", "mobilenetv2_035"), 64),
        **dict.fromkeys(("mobilenetv3_large_100", "mobilenetv4_conv_small", "nasnetalarge", "pnasnet5large"), 64),
        **dict.fromkeys(("mnasnet_100", "efficientnet_b0", "tf_efficientnetv2_b0", "regnety_002", "resnest14d"), 64),
        **dict.fromkeys(
            ("convnext_atto", "convnextv2_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"), 64
        ),
        **dict.fromkeys(("vit_small_patch16_dinov3", "maxvit_rmlp_pico_rw_256", "mobileone_s0", "fastvit_t8"), 64),
        **dict.fromkeys(("levit_128s", "mixer_s32_224", "caformer_s18"), 64),
        **dict.fromkeys(("vit_small_patch14_dinov2", "eva02_tiny_patch14_224"), 56),
    }
