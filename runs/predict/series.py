def forecast_file(*a): pass
