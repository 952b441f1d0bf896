from .multi_task_loops import MultiTaskTestLoop, MultiTaskTrainLoop, MultiTaskValLoop

__all__ = ['MultiTaskTestLoop', 'MultiTaskTrainLoop', 'MultiTaskValLoop']
