# SPDX-License-Identifier: Apache-2.0
"""Generated scenes of shapes, for the demo, benchmarks and tests, as images and as data sets."""
