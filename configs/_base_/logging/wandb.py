# in the _base_ list of a config of yours, or --cfg-options vis_backends=WandbVisBackend; needs requirements/wandb.txt
# WANDB_MODE=offline writes files alone; init_kwargs=dict(project=...) and more are wandb.init's
vis_backends = [dict(type="WandbVisBackend", define_metric_cfg=[dict(name="*", step_metric="iter")])]
