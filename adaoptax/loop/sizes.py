"""The names of `adaoptax._numbers` that the loop uses."""

from adaoptax._numbers import real_number, round_down, round_up, whole_number

__all__ = ["real_number", "round_down", "round_up", "whole_number"]
