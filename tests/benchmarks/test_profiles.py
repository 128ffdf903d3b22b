import pytest

from benchmarks.profiles import part_of


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("mask_rcnn_1/resnet50_1/res2_0_conv1_1/Relu:_MklNativeFusedConv2D", "trunk"),
        ("gradient_tape/training_graph_1/fpn_1_1/output2_1_2/Conv2D/Conv2DBackpropFilter:Conv2DBackpropFilter", "pyramid"),
        ("mask_rcnn_1/rpn_head_1/conv0_9/Relu:_MklNativeFusedConv2D", "RPN head"),
        ("training_graph_1/mask_pool_1/CropAndResize:CropAndResize", "ROIAlign"),
        ("mask_rcnn_1/anchors_1/add_2:AddV2", "proposals"),
        ("mask_rcnn_1/mask_scatter_1/ScatterNd:ScatterNd", "detections"),
        ("SGD/mul:Mul", "others"),
    ],
)
def test_an_operation_belongs_to_the_part_that_its_layer_stands_in(name, part):
    assert part_of(name) == part
