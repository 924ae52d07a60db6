"""Where students are taught: ingest, models, distillation, training, evaluation, simulation, export.

Needs no ROS. Run as ``python -m training COMMAND`` from the checkout.
"""
