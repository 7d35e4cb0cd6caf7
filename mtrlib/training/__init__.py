"""Fitting one model, with exact resume, and how the losses of its tasks are weighted (`weights`)."""

from mtrlib.training.fitting import build, checkpoint, epoch_losses, fit, learning_rate, optimizer_of, save
