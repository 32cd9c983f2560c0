"""The table `data` of recipes that learn from recordings: sources, augmentation, filters, batches."""

from __future__ import annotations

from echat.audio.augmentation import AugmentConfig
from echat.data.batching import LoadingConfig
from echat.data.eligibility import FilterConfig
from echat.data.sources import SourceConfig


class AudioDataConfig(LoadingConfig):
    """Corpora, and how their records become batches."""

    sources: tuple[SourceConfig, ...]
    validation: tuple[SourceConfig, ...] = ()
    validation_records: int = 32  # per source and task
    augment: AugmentConfig | None = None
    filters: FilterConfig = FilterConfig()
