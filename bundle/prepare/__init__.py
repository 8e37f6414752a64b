"""From a download to a folder that the configs read: ``python -m bundle prepare``.

sources    what was downloaded -> its scans and their files
dicom      DICOM slices and PNG labels -> volumes whose affine is true
recipes    volume and label -> the grid and the intensities that a config expects
dataset    all of a download's scans -> images/, labels/, dataset.json; goes on where it stopped
"""
