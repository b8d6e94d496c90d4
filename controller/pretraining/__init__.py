"""Makes the shipped policy: synthetic public tasks, training, evaluation, export with a card.

Nothing here meets a record. `tasks` and `lora_task` make the tasks, `job` runs one of them
under the real action map, `rows` is the vectorised environment, `train` and `evaluate` use
it, `policy_file` reads and writes what a policy is shipped as.
"""
