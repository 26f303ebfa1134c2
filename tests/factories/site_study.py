"""A study whose tasks at a site are stand-ins: nothing in it is ever trained."""

from __future__ import annotations

STUDY = """
[protocol]
name = "site-test"
purpose = "Test a site."
path = "empirical"
policy = "rehearsal"
license = "CC-BY-4.0"
seed = 1

[protocol.data]
recipe = "brain-t1"
grid_vox = [32, 32, 32]
spacing_mm = 8.0
covariates.age_years = { low = 20.0, high = 90.0 }
covariates.sex = { low = 0.0, high = 1.0 }
covariates.ventricle_ml = { low = 5.0, high = 120.0 }
covariates.brain_ml = { low = 800.0, high = 1800.0 }

[protocol.data.splits]
training_frac = 0.50
filter_frac = 0.15
calibration_frac = 0.10
audit_frac = 0.20
utility_frac = 0.05

[[protocol.systems]]
kind = "brain_ldm"
codec = { training = { rounds = 2, length_images = 8 } }
teacher = { training = { rounds = 2, length_images = 8 } }
student = { training = { length_images = 8 } }

[[protocol.systems]]
kind = "reid_encoder"
training = { length_images = 8 }

[protocol.federation]
quorum = 3

[protocol.distillation]
target = 8
released = 1

[roster]
sites = ["north", "harbour", "valley"]
"""
