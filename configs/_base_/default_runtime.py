custom_imports = dict(imports=["apla_mm"], allow_failed_imports=False)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="AtomicCheckpointHook", by_epoch=False, interval=16000, max_keep_ckpts=2),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    checkpoint_reader=dict(type="CheckpointReaderHook"),
    # here, not below: configs replace that list
    finite_loss=dict(type="FiniteLossHook"),
    resume_check=dict(type="ResumeCheckHook"),
    saved_buffers=dict(type="SavedBuffersHook"),
    stop_signal=dict(type="StopSignalHook"),
    training_log=dict(type="TrainingLogHook"),
    weights_check=dict(type="WeightsCheckHook"),
)
custom_hooks = [dict(type="DataCheckHook"), dict(type="APLAHook")]
log_processor = dict(by_epoch=False)
log_level = "INFO"
load_from = None
resume = False
