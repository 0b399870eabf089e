"""Sampling engines behind one asynchronous interface (`fgrpo.sampling.base`)."""
