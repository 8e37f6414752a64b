"""Convert a download to a folder that the configs read: ``python -m bundle prepare``.

sources    what was downloaded -> its scans and their files
dicom      DICOM slices and PNG labels -> volumes with the correct affine
recipes    volume and label -> the grid and the intensities that a config expects
dataset    all of a download's scans -> images/, labels/, dataset.json; resumes where it stopped
"""
