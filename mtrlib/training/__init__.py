"""Fitting one model, with exact resume, how the losses of its tasks are weighted (`weights`), and training against
attacks (`adversarial`)."""

from mtrlib.training.fitting import build, checkpoint, epoch_losses, fit, learning_rate, optimizer_of, save
