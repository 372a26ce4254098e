"""Whole models as files that run without OpenMMLab: ONNX, TorchScript, torch.export."""
