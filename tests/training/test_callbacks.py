"""Stock callbacks are called as `transformers.Trainer` calls them."""

from transformers import TrainerCallback, TrainerControl, TrainerState

from poa_hf.training.callbacks import CallbackList


class First(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, model=None, optimizer=None, lr_scheduler=None, **kwargs):
        self.seen.append((args, model, optimizer, lr_scheduler, sorted(kwargs)))
        control.should_log = True  # and nothing is returned


class Second(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        assert control.should_log
        return TrainerControl(should_save=True)


class Third(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        logs["added"] = 1


def test_callbacks_share_and_replace_the_control_in_order():
    first = First()
    callbacks = CallbackList([first, Second, Third()], model="model", optimizer="optimizer", train_dataloader=None)
    control = callbacks.call("on_step_end", "args", TrainerState(), TrainerControl())
    assert control.should_save and not control.should_log
    others = ["eval_dataloader", "processing_class", "train_dataloader"]
    assert first.seen == [("args", "model", "optimizer", None, others)]


def test_what_an_event_passes_may_be_changed():
    logs = {}
    control = TrainerControl()
    assert CallbackList([Third()]).call("on_log", None, TrainerState(), control, logs=logs) is control
    assert logs == {"added": 1}
