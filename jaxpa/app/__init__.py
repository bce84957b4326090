"""A page in the browser that paints masks, places subjects and draws pictures, on this machine.

picks    masks: painted, or grown from a click
desk     what lies on the page, as files of a folder and a request
jobs     one job at a time, watched step by step
looks    attention, as numbers that the page draws
parts    what the tabs share: settings, results, errors as sentences
laying   what lies on the tab of subjects
personal  the tab of subjects
editing  the tabs that draw from words alone, redraw a part, or extend a picture
looking  the tab of attention
page     the whole page, and its server
"""
