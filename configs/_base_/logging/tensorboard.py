# in the _base_ list of a config of yours, or --cfg-options vis_backends=TensorboardVisBackend;
# then tensorboard --logdir work_dirs
vis_backends = [dict(type="TensorboardVisBackend")]
