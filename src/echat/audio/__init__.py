"""Audio files, resampling, log-mel features, voice activity detection and augmentation."""
