"""Ends with 0 where Qt finds a screen and OpenGL works on it, as the viewer tests need."""

from __future__ import annotations

import sys

from PyQt6.QtGui import QOffscreenSurface, QOpenGLContext
from PyQt6.QtWidgets import QApplication

application = QApplication([])
surface = QOffscreenSurface()
surface.create()
context = QOpenGLContext()
sys.exit(0 if context.create() and context.makeCurrent(surface) else "no OpenGL on this screen")
