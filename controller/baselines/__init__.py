"""The arms of the utility benchmark: published methods, our plan, our policies (controller.md 4).

`controller.baselines.registry` lists them, `controller.baselines.arm` says what an arm is.
"""
