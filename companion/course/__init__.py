"""The course: profiles, figures, the environment check and the runner of the notebooks. Needs the extra ``course``."""
