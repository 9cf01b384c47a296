"""The course: profiles, figures, the environment check and the runner of the notebooks. Needs the extra ``course``."""

from companion.errors import extra

with extra("course"):
    from companion.course import figures, profiles

__all__ = ["figures", "profiles"]
