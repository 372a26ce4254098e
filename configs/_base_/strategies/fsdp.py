# FSDP for a backbone that adapts itself (APLAViT): what is frozen is sharded over the processes, what trains is not.
# _base_ = ["../seg/apla_vitb_ade.py", "../_base_/strategies/fsdp.py"], then tools/dist_train.sh CONFIG GPUS
runner_type = "FlexibleRunner"
strategy = dict(type="APLAFSDPStrategy")
