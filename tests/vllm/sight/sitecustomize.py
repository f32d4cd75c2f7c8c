"""torchvision from PyPI beside torch's build for CPUs: its own library wants CUDA's, so an operator that it only describes is declared here.

What prepares images for Qwen's models are torchvision's functions in Python, which need none of it.
"""

import torch

declared = torch.library.Library("torchvision", "DEF")
declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
