"""Training of pruned networks: they stay pruned, and nothing leaks out of the training."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoprune.errors import ConfigError, DataError, RunError, TrainingError
from autoprune.models.ultralytics import UltralyticsAdapter, stock
from autoprune.models.ultralytics.checkpoint import read_checkpoint
from autoprune.models.ultralytics.loading import load_content
from autoprune.training.extensions._base import TrainingExtension
from autoprune.training.finetune import finetune
from autoprune.training.plan import short_scale
from autoprune.training.results import EpochReport
from autoprune.training.ultralytics.recipe import recipe
from autoprune.training.ultralytics.session import Session
from autoprune.training.ultralytics.trainer import PrunedTrainer
from tests.helpers.detectors import IMAGE_SIZE, build, write_yaml
from tests.helpers.training import DENSE, PRUNED, Stop, parameters, pruned, stop, write_training


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> UltralyticsAdapter:
    return write_training(tmp_path_factory.mktemp("finetune"))


@pytest.fixture(scope="module")
def folder(adapter: UltralyticsAdapter) -> Path:
    """A dense detector, a pruned one that carries the dense YAML as real ones do, and a data set."""
    assert adapter.data is not None
    return adapter.data.file.parent


def arguments(folder: Path, out: Path, **others: object) -> dict[str, Any]:
    """Ultralytics' arguments for a training of seconds."""
    return {
        "data": str(folder / "data.yaml"),
        "imgsz": IMAGE_SIZE,
        "batch": 3,
        "project": str(out),
        "name": "run",
        "plots": False,
        "device": "cpu",
        "optimizer": "AdamW",
        **others,
    }


# -- PrunedTrainer in stock training ---------------------------------------------------------------


def test_stock_training_throws_the_pruning_away(folder: Path, tmp_path: Path) -> None:
    """Why the trainer exists; once this fails, Ultralytics has changed for the better."""
    from ultralytics import YOLO

    model = YOLO(folder / "pruned.pt")
    model.train(**arguments(folder, tmp_path, epochs=1))
    assert parameters(model.model) == DENSE != PRUNED


def test_trained_network_stays_pruned_everywhere(folder: Path, tmp_path: Path) -> None:
    from ultralytics import YOLO

    model = YOLO(folder / "pruned.pt")
    model.train(trainer=PrunedTrainer, **arguments(folder, tmp_path, epochs=1))
    assert parameters(model.model) == PRUNED
    for name in ("last", "best"):  # read by the safe loader: stock classes only
        assert parameters(read_checkpoint(tmp_path / "run" / "weights" / f"{name}.pt").module) == PRUNED


def test_resumed_network_stays_pruned(folder: Path, tmp_path: Path) -> None:
    from ultralytics import YOLO

    model = YOLO(folder / "pruned.pt")
    model.add_callback("on_model_save", stop)
    with pytest.raises(Stop):
        model.train(trainer=PrunedTrainer, **arguments(folder, tmp_path, epochs=2))
    last = tmp_path / "run" / "weights" / "last.pt"
    resumed = YOLO(last)
    resumed.train(trainer=PrunedTrainer, resume=True)
    assert parameters(resumed.model) == PRUNED
    assert parameters(read_checkpoint(last).module) == PRUNED
    assert len((tmp_path / "run" / "results.csv").read_text().splitlines()) == 3  # a header and two epochs


@pytest.mark.slow
def test_ddp_workers_get_the_pruned_network(folder: Path, tmp_path: Path) -> None:
    """Ultralytics hands its workers the trainer's class and network in a file."""
    from ultralytics.utils.dist import ddp_cleanup, generate_ddp_file

    trainer = PrunedTrainer(overrides={**arguments(folder, tmp_path, epochs=1), "model": str(folder / "pruned.pt")})
    as_path = generate_ddp_file(trainer)
    trainer.setup_model()
    as_module = generate_ddp_file(trainer)
    code = """if True:
        import sys
        from pathlib import Path
        from ultralytics.utils import DEFAULT_CFG_DICT
        from ultralytics.utils.patches import torch_load
        state = torch_load(Path(sys.argv[1]).with_suffix(".pt"), map_location="cpu")
        trainer = state["trainer"](cfg={**DEFAULT_CFG_DICT, "save_dir": ""}, overrides=state["args"],
                                   _callbacks=state["callbacks"])
        trainer.model = state["model"]
        trainer.setup_model()
        print(type(trainer).__name__, sum(p.numel() for p in trainer.model.parameters()))
    """
    try:
        for file in (as_path, as_module):
            done = subprocess.run(
                [sys.executable, "-c", code, file], capture_output=True, text=True, check=False, cwd=Path.cwd()
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines()[-1] == f"PrunedTrainer {PRUNED}"
    finally:
        for file in (as_path, as_module):
            ddp_cleanup(trainer, file)


def test_weights_from_elsewhere_are_refused(folder: Path, tmp_path: Path) -> None:
    from ultralytics import YOLO

    model = YOLO(folder / "pruned.pt")
    with pytest.raises(TrainingError, match="would replace the pruned network"):
        model.train(trainer=PrunedTrainer, pretrained=str(folder / "tiny.pt"), **arguments(folder, tmp_path, epochs=1))
    with pytest.raises(TrainingError, match="got none"):
        model.train(trainer=PrunedTrainer, pretrained=False, **arguments(folder, tmp_path, epochs=1))


def test_another_number_of_classes_is_refused(folder: Path, tmp_path: Path) -> None:
    from ultralytics import YOLO

    data = write_yaml(
        tmp_path / "data.yaml", {"path": str(folder), "train": "images/train", "val": "images/val", "names": ["one"]}
    )
    with pytest.raises(TrainingError, match=r"knows 2 classes, but .* names 1"):
        YOLO(folder / "pruned.pt").train(
            trainer=PrunedTrainer, **{**arguments(folder, tmp_path, epochs=1), "data": str(data)}
        )


# -- finetune --------------------------------------------------------------------------------------


def process_state() -> tuple[Any, ...]:
    return (
        dict(os.environ),
        random.getstate(),
        torch.get_rng_state().tolist(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.get_num_threads(),
        torch.save,
    )


def test_finetunes_a_copy_and_leaves_everything_else_alone(
    adapter: UltralyticsAdapter, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = pruned()
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    caches = set(folder.rglob("*.cache"))
    state = process_state()
    reports: list[EpochReport] = []

    result = finetune(adapter, network, epochs=2, batch=3, out=tmp_path / "tuning", on_epoch=reports.append)

    assert process_state() == state
    assert capfd.readouterr() == ("", "")
    assert set(folder.rglob("*.cache")) == caches
    assert not network.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert (result.epochs, result.batch) == (2, 3)
    assert [(report.epoch, report.epochs) for report in reports] == [(1, 2), (2, 2)]
    assert all(
        report.accuracy is not None and set(report.losses) == {"box_loss", "cls_loss", "dfl_loss"} for report in reports
    )
    tuned: Any = result.module
    assert parameters(tuned) == PRUNED
    assert not tuned.training
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in tuned.state_dict().items())
    assert tuned.args is adapter.module.args


def test_the_tuned_network_is_saved_as_stock(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    result = finetune(adapter, pruned(), epochs=1, batch=3, out=tmp_path / "tuning")
    adapter.save(result.module, tmp_path / "model.pt")
    assert parameters(UltralyticsAdapter.load(tmp_path / "model.pt").module) == PRUNED
    adapter.loss(result.module.train(), adapter.batches("train", images=2, batch=2, seed=0)[0]).backward()


def test_the_same_seed_gives_the_same_network(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    def tuned(name: str, seed: int) -> torch.Tensor:
        torch.manual_seed(hash(name))  # what was drawn before must not matter
        result = finetune(adapter, pruned(), epochs=1, batch=3, out=tmp_path / name, seed=seed)
        return torch.cat([parameter.detach().flatten() for parameter in result.module.parameters()])

    first = tuned("first", 3)
    assert torch.equal(first, tuned("second", 3))
    assert not torch.equal(first, tuned("third", 4))


def test_a_loss_that_is_no_number_ends_the_training(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    network = pruned()
    with torch.no_grad():
        network.model[0].conv.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"not a number in epoch 1 .*lower the learning rate"):
        finetune(adapter, network, epochs=2, batch=3, out=tmp_path)


@pytest.mark.parametrize(
    ("changes", "batch", "said"),
    [({"freeze": 100}, 3, "no trainable parameters left"), ({"multi_scale": 0.5}, 5, "final batch=1")],
)
def test_what_ultralytics_refuses_is_one_sentence(
    adapter: UltralyticsAdapter, tmp_path: Path, changes: dict[str, Any], batch: int, said: str
) -> None:
    with pytest.raises(TrainingError, match=f"Ultralytics refuses this training: .*{said}"):
        finetune(adapter, pruned(), epochs=1, batch=batch, out=tmp_path, changes=changes)


def test_an_image_that_vanishes_is_named_and_not_the_run_folder(tmp_path: Path) -> None:
    adapter = write_training(tmp_path)

    def remove(_: object) -> None:
        for image in (tmp_path / "images" / "train").iterdir():
            image.unlink()

    with pytest.raises(DataError, match=r"train/\d\.png cannot be read"):
        finetune(adapter, pruned(), epochs=2, batch=3, out=tmp_path / "run", workers=0, on_epoch=remove)


def test_arrays_next_to_images_are_the_users(tmp_path: Path) -> None:
    adapter = write_training(tmp_path)
    arrays = [image.with_suffix(".npy") for image in tmp_path.glob("images/*/*.png")]
    for number, array in enumerate(arrays):
        np.save(array, np.ones((8, 8), np.float32) if number % 2 else np.array([{"a": 1}], dtype=object))
    before = {array: array.read_bytes() for array in arrays}
    finetune(adapter, pruned(), epochs=1, batch=3, out=tmp_path / "run", workers=0)
    adapter.batches("train", images=6, batch=3, seed=0)
    assert {array: array.read_bytes() for array in tmp_path.glob("images/*/*.npy")} == before


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"batch": 0}, {"lr_scale": 0.0}, {"lr_scale": float("nan")}])
def test_settings_out_of_range(adapter: UltralyticsAdapter, tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must"):
        finetune(adapter, pruned(), out=tmp_path, **{"epochs": 1, **bad})


def test_tuning_needs_data(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="needs a data set"):
        finetune(UltralyticsAdapter.load(folder / "tiny.pt"), pruned(), epochs=1, out=tmp_path)


def test_tuning_into_a_file(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunError, match="taken cannot be written"):
        finetune(adapter, pruned(), epochs=1, out=tmp_path / "taken")


class Swap(TrainingExtension):
    """Puts another network where the pruned one's averaged weights are."""

    def attach(self, session: Session) -> None:
        session.listen("on_train_epoch_end", lambda trainer: setattr(trainer.ema, "ema", build(16)))


def test_a_checkpoint_of_another_network_is_never_left(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    said = r"does not hold the pruned network: model\.1\.conv\.weight is 16×8×3×3 there and 8×8×3×3 in the pruned"
    with pytest.raises(TrainingError, match=said):
        finetune(adapter, pruned(), epochs=1, batch=3, out=tmp_path, extensions=[Swap()])
    assert not (tmp_path / "weights" / "last.pt").exists()


# -- early stopping --------------------------------------------------------------------------------


@pytest.fixture
def fitness(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How good every epoch is, whatever the validation says."""
    values = [0.1, 0.3, 0.2, 0.2, 0.2, 0.2]
    validate = Session.validate

    def told(self: Session) -> tuple[Any, float]:
        metrics, _ = validate(self)
        self.best_fitness = max(values[: self.epoch + 1])
        return metrics, values[self.epoch]

    monkeypatch.setattr(Session, "validate", told)
    return values


def test_stops_when_nothing_gets_better_and_keeps_the_best(
    adapter: UltralyticsAdapter, fitness: list[float], tmp_path: Path
) -> None:
    reports: list[EpochReport] = []
    settings: dict[str, Any] = {"epochs": len(fitness), "batch": 3, "out": tmp_path, "changes": {"patience": 2}}
    result = finetune(adapter, pruned(), on_epoch=reports.append, **settings)
    assert result.epochs == len(reports) == 4
    last, best = (load_content(tmp_path / "weights" / f"{name}.pt", trust=False) for name in ("last", "best"))
    assert (last["epoch"], last["stopper"]["best_epoch"], best["epoch"]) == (3, 2, 1)
    kept = read_checkpoint(tmp_path / "weights" / "best.pt").module
    assert_same_weights(result.module, kept)
    again = finetune(adapter, pruned(), on_epoch=reports.append, resume=True, **settings)
    assert len(reports) == again.epochs == 4, "it is over"
    assert_same_weights(again.module, kept)


def test_early_stopping_remembers_across_a_kill(
    adapter: UltralyticsAdapter, fitness: list[float], tmp_path: Path
) -> None:
    def stop_in_the_third(report: EpochReport) -> None:
        if report.epoch == 3:
            raise Stop

    settings: dict[str, Any] = {"epochs": len(fitness), "batch": 3, "out": tmp_path, "changes": {"patience": 2}}
    with pytest.raises(Stop):
        finetune(adapter, pruned(), on_epoch=stop_in_the_third, **settings)
    result = finetune(adapter, pruned(), resume=True, **settings)
    assert result.epochs == 4
    assert_same_weights(result.module, read_checkpoint(tmp_path / "weights" / "best.pt").module)


def assert_same_weights(one: Any, other: Any) -> None:
    """Compare parameters with a checkpoint's; batch norm's statistics are calibrated anew."""
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(mine.half(), theirs.half()), name


# -- recipe ----------------------------------------------------------------------------------------


def test_recipe_scales_the_dense_learning_rate() -> None:
    dense = {**stock.DEFAULT_CFG_DICT, "optimizer": "SGD", "lr0": 0.02, "box": 9.0, "copy_paste": 0.3}
    found = recipe(dense, epochs=10, batch=8, lr_scale=0.1)
    assert found["optimizer"] == "SGD"
    assert found["lr0"] == pytest.approx(0.002 * 8 / 64)  # steps of 8 images where the dense training took 64
    assert (found["box"], found["copy_paste"]) == (9.0, 0.3)
    assert found["warmup_bias_lr"] == 0


@pytest.mark.parametrize(("epochs", "rate"), [(3, 0.0003), (9, 0.0003), (10, 0.001), (40, 0.001)])
def test_a_short_training_starts_lower(epochs: int, rate: float) -> None:
    found = recipe(stock.DEFAULT_CFG_DICT, epochs=epochs, batch=16, lr_scale=short_scale(epochs))
    assert found["lr0"] == pytest.approx(rate)


@pytest.mark.parametrize(("epochs", "unmixed"), [(1, 1), (20, 20), (30, 20), (100, 50)])
def test_mosaic_is_for_the_first_half_of_long_trainings(epochs: int, unmixed: int) -> None:
    assert recipe(stock.DEFAULT_CFG_DICT, epochs=epochs, batch=16, lr_scale=0.1)["close_mosaic"] == unmixed


@pytest.mark.parametrize("optimizer", ["auto", "MuSGD"])
def test_recipe_names_an_optimizer_where_the_dense_training_did_not(optimizer: str) -> None:
    dense = {**stock.DEFAULT_CFG_DICT, "optimizer": optimizer, "lr0": 0.5}
    found = recipe(dense, epochs=10, batch=8, lr_scale=0.1)
    assert (found["optimizer"], found["lr0"]) == ("AdamW", pytest.approx(0.0001))


@pytest.mark.parametrize("bias_rate", [0.0, 0.1])  # 0 is the mark of a rate that Ultralytics chose
def test_recipe_starts_as_high_as_the_dense_training_did(bias_rate: float) -> None:
    dense = {**stock.DEFAULT_CFG_DICT, "optimizer": "AdamW", "lr0": 0.00143, "warmup_bias_lr": bias_rate}
    assert recipe(dense, epochs=10, batch=8, lr_scale=1.0)["lr0"] == 0.00143


def test_running_statistics_keep_up_while_a_network_trains_and_only_then(
    adapter: UltralyticsAdapter, tmp_path: Path
) -> None:
    """At 0.1 DeepPCB yolo11n still had 0.485 in an epoch whose network, recalibrated, has 0.506."""

    class Momenta(TrainingExtension):
        found: set[float]

        def attach(self, training: Any) -> None:
            self.found = {one.momentum for one in training.model.modules() if isinstance(one, torch.nn.BatchNorm2d)}

    momenta, module = Momenta(), pruned()
    before = {one.momentum for one in module.modules() if isinstance(one, torch.nn.BatchNorm2d)}
    assert max(before) < 0.1, "as Ultralytics makes them"
    tuned = finetune(adapter, module, epochs=1, out=tmp_path, batch=3, extensions=[momenta]).module
    assert momenta.found == {0.1}
    assert {one.momentum for one in tuned.modules() if isinstance(one, torch.nn.BatchNorm2d)} == before


@pytest.mark.shared
@pytest.mark.slow
def test_a_real_detector_learns_on(shared: Path, tmp_path: Path) -> None:
    adapter = UltralyticsAdapter.load(
        shared / "models/bccd-yolov5nu-320.pt", data=shared / "data/bccd/bccd.yaml", image_size=160
    )
    before = adapter.validate(adapter.module)
    result = finetune(adapter, adapter.module, epochs=4, out=tmp_path)
    assert adapter.validate(result.module).primary > before.primary
