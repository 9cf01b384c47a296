"""Settings that all tests share."""

from hypothesis import settings

settings.register_profile("companion", deadline=None)  # timing never decides a test
settings.load_profile("companion")
