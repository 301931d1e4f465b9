"""What the tables of the paper call the datasets."""

DATASETS = {
    "CREMA-D": "cremad",
    "MELD (E)": "meld_emotion",
    "MOSEI (E)": "mosei_emotion",
    "TESS": "tess",
    "UR-FUNNY": "urfunny",
    "IntentQA": "intentqa",
    "PTSD_WILD": "ptsd_in_the_wild",
    "MMPSY (A)": "mmpsy_anxiety",
    "MMPSY (D)": "mmpsy_depression",
    "DAIC-WOZ": "daicwoz",
    "MELD (S)": "meld_senti",
    "CH-SIMSv2": "chsimsv2",
    "MOSEI (S)": "mosei_senti",
    "MUSTARD": "mmsd",
    "Social-IQ 2.0": "siq2",
    "MimeQA": "mimeqa",
    "IEMOCAP": "iemocap",
}
