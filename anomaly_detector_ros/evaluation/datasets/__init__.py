"""Labelled data sets: RUGD, RELLIS-3D, YCOR and folders of images and masks."""
