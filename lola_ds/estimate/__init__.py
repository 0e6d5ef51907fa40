"""What a training will need, from its configuration alone: memory, communication, time.

`trace` and `pass_cost` run the network on tensors without storage, `workload` makes the costs
functions of the micro-batch, `memory` and `settings` add what ZeRO adds, `search` compares all
settings and `report` prints them.
"""
