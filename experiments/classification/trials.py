"""Trials of a search, which many processes may share.

A study of optuna holds one method's trials, in a folder's own database, in a journal
file that processes share, or in a database on the network. The number of a trial is
given out once and seeds what it draws, so that no two processes try the same; a process
that finds all trials begun takes none, and the one that ends the last one decides.
"""

import hashlib
import socket
from collections.abc import Callable
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from experiments.engine.checkpoints import reason
from experiments.engine.store import Store
from experiments.errors import UserError
from experiments.files import to_json

_SETTINGS, _OWNER = "settings", "owner"


class Trials:
    """The trials of a search.

    Args:
      store: of this process; it holds the folder, so that trials which it had begun
        and not ended were cut off.
      where: journal file or URL of a database; None for a database in the folder.
      task: name of the search, for a storage may hold others.
      settings: what trials must have in common; plain values.
    """

    def __init__(self, store: Store, where: str | None, task: str, settings: Any):
        self._where, self._prefix = where, f"{task}/" if where else ""
        self._settings = hashlib.sha256(to_json(settings).encode()).hexdigest()[:16]
        self._owner = f"{socket.gethostname()}:{store.folder.absolute()}"
        try:
            self._storage = _open(where or f"sqlite:///{store.folder / 'trials.db'}")
        except Exception as error:  # drivers raise what they like
            raise self._unusable(error) from error

    def study(self, name: str) -> optuna.Study:
        """The study of a method, without what was cut off here.

        Raises:
          UserError: the storage cannot be used, or its trials are of other settings.
        """
        try:
            log = optuna.create_study(
                study_name=f"{self._prefix}{name}",
                storage=self._storage,
                load_if_exists=True,
            )
            there = log.user_attrs.get(_SETTINGS)
            if there is None:
                log.set_user_attr(_SETTINGS, self._settings)
            for trial in log.get_trials(states=[TrialState.RUNNING]):
                alone = self._where is None
                if alone or trial.user_attrs.get(_OWNER) == self._owner:
                    log.tell(trial.number, state=TrialState.FAIL)
        except Exception as error:
            raise self._unusable(error) from error
        if self._where is not None and there not in (None, self._settings):
            raise UserError(
                f"--storage holds trials of {name} with other data or flags. Give "
                "the same as they had, or another --storage."
            )
        return log

    def run(
        self, log: optuna.Study, count: int, objective: Callable[[Trial], float]
    ) -> bool:
        """Tries recipes until so many are tried or being tried, by whomever.

        Args:
          log: from :meth:`study`.
          count: of trials, those of all processes together.
          objective: of a trial, to be small.

        Returns:
          Whether all have ended; others may still be at the last ones.
        """
        while len(_counted(log)) < count:
            trial = log.ask()
            trial.set_user_attr(_OWNER, self._owner)
            # Of those that asked for the last one at once the first has it.
            before = [t for t in _counted(log) if t.number < trial.number]
            if len(before) >= count:
                log.tell(trial, state=TrialState.FAIL)
                break
            log.sampler = optuna.samplers.TPESampler(
                seed=trial.number, constant_liar=True
            )
            log.tell(trial, objective(trial))
        return len(finished(log)) >= count

    def _unusable(self, error: Exception) -> UserError:
        # The URL of a database may hold a password: it is not repeated.
        return UserError(
            f"--storage cannot be used: {reason(error)}. Give a journal file in a "
            "folder that exists, or the URL of a database whose driver is installed."
        )


def finished(log: optuna.Study) -> list[FrozenTrial]:
    """Trials that were not cut off."""
    return log.get_trials(states=[TrialState.COMPLETE])


def _counted(log: optuna.Study) -> list[FrozenTrial]:
    """Trials that have ended or are under way."""
    return log.get_trials(states=[TrialState.COMPLETE, TrialState.RUNNING])


def _open(where: str) -> optuna.storages.BaseStorage:
    if "://" in where:
        return optuna.storages.get_storage(where)
    return JournalStorage(JournalFileBackend(where))
