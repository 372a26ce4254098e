_base_ = "default_runtime.py"
default_scope = "mmseg"
default_hooks = dict(
    checkpoint=dict(save_best="mIoU"),
    lean_heads=dict(type="LeanHeadsHook"),
    lean_inference=dict(type="LeanInferenceHook"),
    visualization=dict(type="SegVisualizationHook"),
)
visualizer = dict(type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")], name="visualizer")
tta_model = dict(type="SegTTAModel")
